"""How alike advertisers are by what is written of them, and what that says of a user: a few terms of a logit.

With S the cosine of two advertisers' texts and c a user's decayed events:

- *mean*: ``Σ c·S / Σ c``; *largest* and *top 3*: of S to any advertiser of the history;
- *near*: ``log Σ c·K / Σ c`` with the kernel ``K = exp((S − 1) / τ)``;
- *popular*: log of everyone's decayed events smoothed over alike texts, by the same kernel: what an advertiser with a
  text like this turns out to be, before it has earned a popularity of its own.

On 100 to 1,000 users of wine ratings the plain cosine gives most of what texts give (docs/experiments,
2026-11-26-text-terms). A **lexical** cosine, of character n-grams without any network, is the control that encodings of
a language model have to beat: reduced to components it loses two thirds of its gain, so it is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advprior.store.arrays import Bool, Float

TEMPERATURES = (0.1, 0.2)  # τ: cosines differ by some tenths
POPULAR_FLOOR, NEAR_FLOOR = 1e-3, 1e-4  # of smoothed events, so that their log stays finite
MEAN, LARGEST, TOP = "mean", "largest", "top 3"


def cosines(encodings: Float) -> Float:
    """Cosines [N, N] of standardised encodings [N, H]: no dimension counts more because it varies more.

    >>> cosines(np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32)).round(1).tolist()[0]
    [1.0, -1.0, 1.0]
    """
    spread = (encodings - encodings.mean(0)) / (encodings.std(0) + 1e-6)
    unit = spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-9)
    result: Float = (unit @ unit.T).astype(np.float32)
    return result


def averaged(several: Sequence[Float]) -> Float:
    """One similarity [N, N] of several cosines [N, N]: their mean, each by the spread it has off the diagonal.

    Where users are few, one similarity that several readers share costs a fit fewer weights than a term of each.

    >>> near, far = np.array([[1.0, 0.8], [0.8, 1.0]], np.float32), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> averaged([near, near]).round(2).tolist() == near.round(2).tolist()
    True
    """
    off = ~np.eye(len(several[0]), dtype=bool)
    total = np.mean([one / (float(one[off].std()) or 1.0) for one in several], axis=0)
    result: Float = (total / (float(np.diag(total).mean()) or 1.0)).astype(np.float32)
    return result


def text_terms(
    cosine: Float,
    own: Float,
    ever: Bool,
    popular: Mapping[str, Float],
    temperatures: Sequence[float] = TEMPERATURES,
) -> dict[str, Float]:
    """Terms [P, N] of P users, by name.

    Parameters
    ----------
    cosine : float32 [N, N]
    own : float32 [P, N]
        Decayed events of each user.
    ever : bool [P, N]
        Whether the user had any event of the advertiser: their history.
    popular : mapping of str to float [N]
        Decayed events of everyone, by what the half-life is called.
    temperatures : sequence of float
        Of the kernels; none of *near* and *popular* without one.
    """
    share = np.log1p(own)
    share /= np.maximum(share.sum(1, keepdims=True), 1e-9)
    largest, top = _nearest(cosine, ever)
    terms = {MEAN: (share @ cosine).astype(np.float32), LARGEST: largest, TOP: top}
    for temperature in temperatures:
        kernel = np.exp((cosine - 1.0) / temperature)
        terms[f"near {temperature}"] = np.log(share @ kernel + NEAR_FLOOR).astype(np.float32)
        for name, events in popular.items():
            smoothed = np.log((events @ kernel + POPULAR_FLOOR) / kernel.sum(0)).astype(np.float32)
            terms[f"popular {name} {temperature}"] = np.broadcast_to(smoothed, own.shape)
    return terms


def _nearest(cosine: Float, ever: Bool) -> tuple[Float, Float]:
    """Largest cosine to the history, and the mean of the three largest [P, N]; zero without a history."""
    largest, top = np.zeros(ever.shape, np.float32), np.zeros(ever.shape, np.float32)
    for point in np.flatnonzero(ever.any(1)):
        near = np.sort(cosine[ever[point]], axis=0)[-3:]
        largest[point], top[point] = near[-1], near.mean(0)
    return largest, top
