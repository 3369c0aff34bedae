"""The ranking stage: GRPO on ranked lists from the head, after tuning on likelihood.

GRPO (group relative policy optimisation) is of arXiv 2402.03300, its clipped ratio of PPO, arXiv 1707.06347.
For each training point G lists are drawn from the current policy (`tuning.lists`), rewarded by the paper's
``R = R_match − P_adv_len − P_interest_len`` (arXiv 2605.27856), standardised within the group, and made likelier or
less likely by the clipped ratio of list probabilities; interests have a head, lists of 5 and rewards of the same form
of their own. A penalty on the length is the same for all lists of a group (their number is exact, short of a smaller
catalog), so it moves the reported reward and never the policy.

The stage is kept only if, on the validation points, the best 20 earn more reward, Recall@5 does not fall, and neither
head's likelihood pays more than 1 % for it: a prior is read as a log-probability, too. Both sides are reported either
way. Where the settings give several learning rates or KL weights, each pair is a trial from the same tuned network, and
the one that earns most reward among those that may be kept is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from advprior.history.targets import Targets, quality
from advprior.predictors.llm.settings import RankingSettings
from advprior.predictors.llm.tuning.batches import TrainingBatches
from advprior.predictors.llm.tuning.lists import (
    ADVERTISERS,
    INTERESTS,
    length_penalty,
    list_log_prob,
    match_reward,
    reward_of,
    sample_lists,
)
from advprior.predictors.llm.tuning.loop import Course, Measured, Stage, Update, copy_of, restore, run_stage
from advprior.predictors.tuning.compute import to_device
from advprior.store.arrays import Float
from advprior.store.progress import tracked

REFERENCE_BYTES = 1 << 30
NLL_ALLOWANCE = 0.01  # share of the likelihood that a kept stage may cost
CRITERION = "reward of the best 20 rises, recall@5 does not fall, nll of neither head rises by over 1 %"


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards [P, G] standardised within each group; a group whose lists earn the same teaches nothing."""
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6), torch.zeros_like(centred))


def clipped_gain(new: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor, clip: float) -> torch.Tensor:
    """Mean over the group [P] of ``min(r·A, clip(r, 1 ± clip)·A)``, r = the ratio of list probabilities [P, G]."""
    ratio = torch.exp((new - old).clamp(-20.0, 20.0))
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean(1)


def divergence(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL(policy ‖ reference) [P], exact: the policy is a softmax over the whole list."""
    return (log_probs.exp() * (log_probs - reference)).sum(-1)


def best_lists(log_probs: Float, length: int) -> torch.Tensor:
    """The ``length`` likeliest of each point [P, 1, K], the list that the policy would give."""
    given = torch.from_numpy(log_probs)
    return given.topk(min(length, given.shape[1]), dim=-1).indices.unsqueeze(1)


def mean_reward(log_probs: Float, truth: Targets, length: int) -> float:
    """Mean reward of the likeliest lists, length penalty included, over points with a target."""
    some = truth.counts > 0
    if not some.any():
        return float("nan")
    lists = best_lists(log_probs if some.all() else log_probs[some], length)
    credit = truth.take(some).shares().at(lists[:, 0].numpy())
    matched = reward_of(torch.from_numpy(credit)[:, None], length)
    return float(matched.mean()) - length_penalty(lists.shape[-1], length)


def judge(batches: TrainingBatches, truth: Targets, interest_truth: Targets) -> dict[str, float]:
    """Validation figures of both heads: ``valid_nll``, ``valid_recall@5/20``, ``valid_reward``, ``interest_…``."""
    log_probs, interests = batches.validate()
    row = {f"valid_{k}": v for k, v in quality(log_probs, truth).items() if k != "points"}
    row["valid_reward"] = mean_reward(log_probs, truth, ADVERTISERS)
    if batches.interest_head is not None:
        of_interests = quality(interests, interest_truth)
        row |= {f"interest_{k}": of_interests[k] for k in ("nll", "recall@5")}
        row["interest_reward"] = mean_reward(interests, interest_truth, INTERESTS)
        # one list of each: their length penalties add up as in the paper's R
        row["valid_reward"] -= length_penalty(min(INTERESTS, interests.shape[1]), INTERESTS)
    return row


@dataclass(frozen=True)
class RankingOptions:
    """How the stage runs.

    Attributes
    ----------
    settings : RankingSettings
    interest_weight : float
        Of the lists of interests beside those of advertisers.
    patience : int
        Epochs without a better score that end it.
    weight_decay : float
    seed : int
    limit_s : float, optional
        Seconds that its epochs may take.
    """

    settings: RankingSettings
    interest_weight: float
    patience: int
    weight_decay: float
    seed: int
    limit_s: float | None = None


class Reference:
    """What the network said of the training points before the stage.

    It is kept where it is small. Of a wide catalog it is more than the network: then each batch is answered again, by
    the weights of then.

    Parameters
    ----------
    batches : TrainingBatches
    tuned : dict of parameters
        As they are before the stage.
    """

    def __init__(self, batches: TrainingBatches, tuned: dict[str, nn.Parameter]) -> None:
        self._batches, self._tuned = batches, tuned
        self._start: dict[str, torch.Tensor] | None = copy_of(tuned)
        if batches.count("train") * batches.width * 4 <= REFERENCE_BYTES:
            every = tracked(range(len(batches)), "answers before the ranking stage", "batch")
            self._kept: list[Said | None] = [self._said(batch) for batch in every]
            self._start = None

    def of(self, batch: int) -> Said | None:
        """Log-probabilities of a batch's points, None where it has none."""
        if self._start is None:
            return self._kept[batch]
        now = copy_of(self._tuned)
        restore(self._tuned, self._start)
        try:
            return self._said(batch)
        finally:
            restore(self._tuned, now)

    def _said(self, batch: int) -> Said | None:
        with torch.no_grad():
            answer = self._batches.answer(batch, "train")
        return None if answer is None else Said(answer.log_probs.cpu(), answer.interests.cpu())


@dataclass(frozen=True)
class Said:
    """Log-probabilities of advertisers [P, N] and interests [P, C], out of a card's memory."""

    log_probs: torch.Tensor
    interests: torch.Tensor


def policy_step(
    batches: TrainingBatches, options: RankingOptions, kl: float, reference: Reference | None
) -> Callable[[int, Update], Measured]:
    """The step of a `Stage`: draw, reward, and move the policy a few times; gives the sum of rewards and its weight."""
    settings, interest_weight = options.settings, options.interest_weight

    def step(batch: int, update: Update) -> Measured:
        with torch.no_grad():
            before = batches.answer(batch, "train")
        if before is None:
            return 0.0, 0.0
        sides = [("log_probs", "truth", ADVERTISERS, 1.0)]
        if before.interests.shape[1] and interest_weight:
            sides.append(("interests", "interest_truth", INTERESTS, interest_weight))
        drawn, reward_sum = [], 0.0
        for output, target, length, weight in sides:
            old, truth = getattr(before, output), getattr(before, target)
            lists = sample_lists(old, settings.group, length)
            rewards = match_reward(lists, truth, length) - length_penalty(lists.shape[-1], length)
            drawn.append((output, lists, list_log_prob(old, lists), advantages(rewards), weight))
            if output == "log_probs":
                reward_sum += float((before.weight * rewards.mean(1)).sum())
            else:  # as in the paper's R: of interests their length alone
                reward_sum -= float(before.weight.sum()) * length_penalty(lists.shape[-1], length)
        share = before.weight / before.weight.sum()
        base = reference.of(batch) if kl and reference is not None else None
        for _ in range(settings.inner_steps):
            now = batches.answer(batch, "train")
            assert now is not None
            loss = now.log_probs.new_zeros(())
            for output, lists, old, advantage, weight in drawn:
                log_probs = getattr(now, output)
                loss -= (
                    weight
                    * (share * clipped_gain(list_log_prob(log_probs, lists), old, advantage, settings.clip)).sum()
                )
                if base is not None:
                    reference_probs = to_device(getattr(base, output), log_probs.device)
                    loss += weight * kl * (share * divergence(log_probs, reference_probs)).sum()
            update(loss * before.weight.sum(), before.weight.sum())
        return reward_sum, float(before.weight.sum())

    return step


def ranking_stage(
    batches: TrainingBatches, tuned: dict[str, nn.Parameter], options: RankingOptions, checkpoints: Sequence[Path]
) -> tuple[Course, dict[str, Any]]:
    """Run the stage's trials on the tuned parameters and keep the best one, if it makes validation better.

    Parameters
    ----------
    batches : TrainingBatches
    tuned : dict of parameters
    options : RankingOptions
    checkpoints : sequence of Path
        A file for each of ``options.settings.trials``.

    Returns
    -------
    Course
        Of the trial that is kept, or of the one with most reward: the curve, and the epoch kept (0: none).
    dict
        ``kept``, ``criterion``, ``before`` and ``after`` (validation figures; ``after`` is the kept epoch's, or that
        of most reward), ``lr`` and ``kl`` of that trial, and ``trials``: those of each with its best epoch's figures.
    """
    trials = options.settings.trials
    truth, interest_truth = batches.valid("truth"), batches.valid("interests")
    batches.model.eval()  # no dropout: a ratio of probabilities must start at one
    before = judge(batches, truth, interest_truth)
    reference = Reference(batches, tuned) if any(kl for _, kl in trials) else None
    start = copy_of(tuned)
    best, weights, courses, rows = -1, start, [], []
    for i, ((lr, kl), checkpoint) in enumerate(zip(trials, checkpoints, strict=True)):
        restore(tuned, start)
        limit = None if options.limit_s is None else options.limit_s / len(trials)
        stage = Stage(
            name="ranking stage" + (f", lr {lr:g}, kl {kl:g}" if len(trials) > 1 else ""),
            measure="train_reward",
            step=policy_step(batches, options, kl, reference),
            batches=len(batches),
            updates=options.settings.inner_steps,
            validate=lambda: judge(batches, truth, interest_truth),
            score=lambda row: _score(row, before),
            epochs=options.settings.epochs,
            patience=options.patience,
            limit_s=limit,
            to_beat=-before["valid_reward"],
        )
        groups = [{"params": list(tuned.values()), "lr": lr, "weight_decay": options.weight_decay}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        course = run_stage(stage, optimizer, tuned, options.seed, checkpoint, batches.compute)
        chosen = course.best_epoch or 1 + int(np.argmax([row["valid_reward"] for row in course.curve]))
        courses.append(course)
        rows.append({"lr": lr, "kl": kl, "kept": False, **course.curve[chosen - 1]})
        if course.best_epoch and (best < 0 or rows[i]["valid_reward"] > rows[best]["valid_reward"]):
            best, weights = i, copy_of(tuned)
    restore(tuned, weights)
    shown = best if best >= 0 else int(np.argmax([row["valid_reward"] for row in rows]))
    rows[shown]["kept"] = best >= 0
    course = replace(courses[shown], late=any(course.late for course in courses))
    return course, {
        "kept": best >= 0,
        "criterion": CRITERION,
        "before": before,
        "after": {name: value for name, value in rows[shown].items() if name not in ("lr", "kl", "kept")},
        "lr": rows[shown]["lr"],
        "kl": rows[shown]["kl"],
        "trials": rows,
    }


def _score(row: dict[str, Any], before: dict[str, float]) -> float:
    """Less for more reward; infinite where the epoch may not be kept."""
    gains = row["valid_reward"] > before["valid_reward"] and row["valid_recall@5"] >= before["valid_recall@5"]
    likelihoods = [k for k in ("valid_nll", "interest_nll") if k in before]
    affordable = all(row[k] <= before[k] * (1 + NLL_ALLOWANCE) for k in likelihoods)
    return -float(row["valid_reward"]) if gains and affordable else float("inf")
