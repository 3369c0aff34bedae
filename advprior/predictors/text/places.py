"""Places for advertisers that nobody has turned to yet, kept for them among the first ones of each user.

A calibrated estimate of who is new is one for all that look alike: among the first places stand those of whom more is
known. To add the same to all of them pays for places with probability that they do not have; to move up each user's
likeliest few alone leaves the rest as calibrated as it was (docs/experiments, 2026-11-26-cold-one-setting).
"""

from __future__ import annotations

import numpy as np

from advprior.predictors.logit import log_softmax
from advprior.store.arrays import Bool, Float

FIRST = 5  # places among which some are kept
AHEAD = 1e-3  # nats: by so much each advertiser that was moved up is ahead of the next one


def with_places(log_probs: Float, new: Bool, places: int) -> Float:
    """Log-probs [P, N] in which each user's likeliest ``new`` advertisers take ``places`` of the first `FIRST`.

    Parameters
    ----------
    log_probs : float32 [P, N]
    new : bool [N]
        Of whom there is no event.
    places : int
        0 to `FIRST`. Who stands there already stays where it is; fewer new advertisers than places all get one.

    Returns
    -------
    float32 [P, N]
        Sums to one again. The order within the new and within the others is as it was.

    Examples
    --------
    Six advertisers, the last two are new. With one place the likelier one is fifth, with two they are fourth and fifth:

    >>> prior = np.log(np.array([[0.4, 0.2, 0.15, 0.1, 0.08, 0.04, 0.03]], np.float32))
    >>> new = np.array([False] * 5 + [True] * 2)
    >>> np.argsort(-with_places(prior, new, 1)[0]).tolist(), np.argsort(-with_places(prior, new, 2)[0]).tolist()
    ([0, 1, 2, 3, 5, 4, 6], [0, 1, 2, 5, 6, 3, 4])
    """
    who, others = np.flatnonzero(new), np.flatnonzero(~new)
    places, behind = min(places, len(who)), FIRST - places
    if not places or len(others) <= behind or not len(log_probs):
        return log_probs
    passed = -np.partition(-log_probs[:, others], behind, axis=1)[:, behind, None]
    best = who[np.argsort(-log_probs[:, who], axis=1, kind="stable")[:, :places]]
    least = passed + np.float32(AHEAD) * np.arange(places, 0, -1, dtype=np.float32)
    moved = log_probs.copy()
    np.put_along_axis(moved, best, np.maximum(np.take_along_axis(log_probs, best, 1), least), 1)
    return log_softmax(moved)
