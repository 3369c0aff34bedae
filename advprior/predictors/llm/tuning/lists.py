"""Ranked lists as actions: Plackett–Luce lists from a head's log-probabilities, and what a list is worth.

The head is a softmax policy, so the second stage of arXiv 2605.27856 needs no text generation here: a list of 20
advertisers (or 5 interests) is drawn without replacement and has an exact probability.
"""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from advprior.predictors.tuning.compute import uniform

ADVERTISERS, INTERESTS = 20, 5  # how many the paper asks for
CELLS = 4_000_000  # of points × lists × advertisers that are held at once
_NOTHING = -1e30  # log of nothing, with finite arithmetic


def sample_lists(log_probs: torch.Tensor, group: int, length: int) -> torch.Tensor:
    """Draw G lists of K without replacement for each point: Gumbel noise, then the K largest.

    The Gumbel top-k trick (Kool et al., arXiv 1903.06059): the order of the K largest is a draw from Plackett–Luce.

    Parameters
    ----------
    log_probs : Tensor [P, N]
    group, length : int
        G, and K (all N where the catalog is smaller).

    Returns
    -------
    int64 Tensor [P, G, K]
    """
    size = log_probs.shape[-1]
    drawn = []
    for part in torch.split(log_probs, _points(group, size)):  # the same numbers, whatever the parts
        noise = uniform(part.shape[0], group, size, device=log_probs.device).clamp_(min=1e-20, max=1 - 1e-7)
        gumbel = noise.log_().neg_().log_().neg_()
        drawn.append((part.unsqueeze(1) + gumbel).topk(min(length, size), dim=-1).indices)
    return torch.cat(drawn)


def list_log_prob(log_probs: torch.Tensor, lists: torch.Tensor) -> torch.Tensor:
    """Log-probability [P, G] of lists [P, G, K] under Plackett–Luce with log-weights [P, N].

    Plackett (1975), The Analysis of Permutations; Luce (1959), Individual Choice Behavior.
    ``Σ_k log p(l_k) − log Σ_{j not in l_1..l_{k-1}} p(j)``: each place is a choice among what is left.
    """
    step = _points(lists.shape[1], log_probs.shape[-1])
    if len(log_probs) <= step:
        return _list_log_prob(log_probs, lists)
    # an array of all lists over all advertisers would be kept for each part's gradient: made again in its place
    parts = zip(torch.split(log_probs, step), torch.split(lists, step), strict=True)
    return torch.cat([checkpoint(_list_log_prob, *part, use_reentrant=False) for part in parts])


def _points(lists: int, size: int) -> int:
    """How many points' lists over a catalog of ``size`` are held at once."""
    return max(CELLS // max(lists * size, 1), 1)


def _list_log_prob(log_probs: torch.Tensor, lists: torch.Tensor) -> torch.Tensor:
    spread = log_probs.unsqueeze(1).expand(-1, lists.shape[1], -1)
    chosen = torch.gather(spread, 2, lists)
    rest = torch.logsumexp(spread.scatter(2, lists, _NOTHING), dim=-1, keepdim=True)
    # what is left before place k: the list from k on, and all that is not in it
    left = torch.logcumsumexp(torch.cat([rest, chosen.flip(-1)], dim=-1), dim=-1)[..., 1:].flip(-1)
    return (chosen - left).sum(-1)


def match_reward(lists: torch.Tensor, truth: torch.Tensor, length: int) -> torch.Tensor:
    """``R_match`` [P, G]: ``0.1·(length − i) + 2·[i ≤ 4]`` for a hit at rank i, nothing without one.

    Ranks count from 0: then each of the 20 places is worth something (0.1 at the last) and the bonus marks the best
    five, which the paper reports as Recall@5. Several targets of a point share the credit; one target is the
    paper's case. ``lists`` [P, G, K], ``truth`` multi-hot [P, N].
    """
    share = truth / truth.sum(-1, keepdim=True).clamp(min=1.0)
    return reward_of(torch.gather(share.unsqueeze(1).expand(-1, lists.shape[1], -1), 2, lists), length)


def reward_of(credit: torch.Tensor, length: int) -> torch.Tensor:
    """`match_reward` [P, G] of each place's share of the credit [P, G, K]."""
    rank = torch.arange(credit.shape[-1], device=credit.device)
    worth = 0.1 * (length - rank) + 2.0 * (rank <= 4)
    return (credit * worth).sum(-1)


def length_penalty(count: int, wanted: int) -> float:
    """``P_len``: 0 at the exact count, else ``min(0.1·|count − wanted|, 1) + 1``.

    >>> length_penalty(20, 20), length_penalty(12, 20), length_penalty(4, 5)
    (0.0, 1.8, 1.1)
    """
    return 0.0 if count == wanted else min(0.1 * abs(count - wanted), 1.0) + 1.0
