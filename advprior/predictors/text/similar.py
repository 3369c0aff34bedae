"""How alike advertisers are by what is written of them, and what that says of a user: a few terms of a logit.

With S the cosine of two advertisers' texts and c a user's decayed events:

- *mean*: ``Σ c·S / Σ c``; *largest* and *top 3*: of S to any advertiser of the history;
- *near*: ``log Σ c·K / Σ c`` with the kernel ``K = exp((S − 1) / τ)``;
- *popular*: log of everyone's decayed events smoothed over alike texts, by the same kernel: what an advertiser with a
  text like this turns out to be, before it has earned a popularity of its own;
- *lift*: how often the same users turn to two advertisers, against chance, both sides smoothed over alike texts. With K
  the kernel of `text_kernel`, G the users in common, zero on its diagonal, and p the users of each, the mean over c of
  ``log KGK' / s·(Kp)(Kp)'``: a pair that nobody has had yet takes the lift of pairs that read alike (docs/experiments,
  2026-11-26-levers).

On 100 to 1,000 users of wine ratings the plain cosine gives most of what texts give (docs/experiments,
2026-11-26-text-terms). A **lexical** cosine, of character n-grams without any network, is the control that encodings of
a language model have to beat: reduced to components it loses two thirds of its gain, so it is taken as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advprior.store.arrays import Bool, Double, Float, Int

TEMPERATURES = (0.1, 0.2)  # τ: cosines differ by some tenths
POPULAR_FLOOR, NEAR_FLOOR = 1e-3, 1e-4  # of smoothed events, so that their log stays finite
MEAN, LARGEST, TOP = "mean", "largest", "top 3"
CLIP = (-3.0, 6.0)  # standard deviations of a cosine that a kernel tells apart
LIFT_FLOOR = 0.01  # of the mean of what is expected, so that a log stays finite


def cosines(encodings: Float) -> Float:
    """Cosines [N, N] of standardised encodings [N, H]: no dimension counts more because it varies more.

    >>> cosines(np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32)).round(1).tolist()[0]
    [1.0, -1.0, 1.0]
    """
    unit = unit_vectors(encodings)
    result: Float = (unit @ unit.T).astype(np.float32)
    return result


def unit_vectors(encodings: Float) -> Float:
    """Standardised encodings [N, H] at unit length: their products are `cosines`."""
    spread = (encodings - encodings.mean(0)) / (encodings.std(0) + 1e-6)
    unit: Float = spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-9)
    return unit


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


def text_kernel(cosine: Float, speaking: Int | None = None) -> Float:
    """How far an advertiser's events speak for each other one [N, N], by how their cosine stands out; rows sum to one.

    With ``speaking``, of so many advertisers alone [N, F]: what others have in later catalogs changes nothing.

    >>> text_kernel(np.array([[1.0, 0.2, 0.1], [0.2, 1.0, 0.3], [0.1, 0.3, 1.0]], np.float32)).sum(1).round(3).tolist()
    [1.0, 1.0, 1.0]
    """
    among = np.arange(len(cosine)) if speaking is None else speaking
    between = cosine[np.ix_(among, among)][~np.eye(len(among), dtype=bool)]
    middle, spread = (float(between.mean()), float(between.std())) if len(between) else (0.0, 0.0)
    kernel = np.exp(np.clip((cosine[:, among] - middle) / (spread or 1.0), *CLIP))
    result: Float = (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
    return result


def smoothed_lift(
    kernel: Float, both: Float | Double, speaking: Int | None = None, rows: Int | slice = slice(None)
) -> Float:
    """Log-lift [N, N] of two advertisers among the same users, both sides smoothed over alike texts.

    Parameters
    ----------
    kernel : float32 [N, N]
        Of `text_kernel`.
    both : float [N, N]
        Users who turned to both; on the diagonal, to one.
    speaking : int [F], optional
        With a kernel [N, F], ``both`` [F, F] is of these F of the N advertisers.
    rows : int [n], optional
        Of these first advertisers alone [n, N]: a history has a few of all.

    Examples
    --------
    The same users turn to the first and the second of four advertisers; the third reads like the second and takes part
    of it, of the fourth nothing is known:

    >>> both = np.array([[2.0, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    >>> kernel = np.array([[1, 0, 0, 0], [0, 0.8, 0.2, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]], np.float32)
    >>> lift = smoothed_lift(kernel, both)[0]
    >>> bool(lift[1] > 0 and lift[2] > 0 > lift[0]), abs(round(float(lift[3]), 2))
    (True, 0.0)
    """
    users: Float = np.diag(both).astype(np.float32)
    pairs: Float = both.astype(np.float32)
    np.fill_diagonal(pairs, 0.0)
    smoothed: Float = np.asarray(kernel[rows] @ pairs @ kernel.T, np.float32)
    reach: Float = kernel @ users
    chance = pairs.sum() / max(float(users.sum()) ** 2, 1.0)
    return log_lift(smoothed, reach, chance, slice(None) if speaking is None else speaking, rows)


def log_lift(smoothed: Float, reach: Float, chance: float, speaking: Int | slice, rows: Int | slice) -> Float:
    """``log (smoothed + floor) / (expected + floor)`` [n, N], in the place of ``smoothed``.

    What is expected of two is ``chance`` times what they reach; the floor is a hundredth of its mean over who speaks.
    """
    floor = np.float32(LIFT_FLOOR * chance * float(reach[speaking].mean(dtype=np.float64)) ** 2 or 1.0)
    expected: Float = np.outer(reach[rows] * np.float32(chance), reach)
    expected += floor
    smoothed += floor
    smoothed /= expected
    lift: Float = np.log(smoothed, out=smoothed)
    return lift


def lift_term(own: Float, lift: Float) -> Float:
    """Mean lift [..., N] of each advertiser over decayed events ``own`` [..., N]; zero without any."""
    term: Float = (history_shares(own) @ lift).astype(np.float32)
    return term


def history_shares(own: Float) -> Float:
    """What share of a history each advertiser has [..., N], a second event counting less than the first."""
    share = np.log1p(own)
    shares: Float = share / np.maximum(share.sum(-1, keepdims=True), 1e-9)
    return shares


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
    share = history_shares(own)
    largest, top = _nearest(cosine, ever)
    terms = {MEAN: (share @ cosine).astype(np.float32), LARGEST: largest, TOP: top}
    for temperature in temperatures:
        kernel = np.exp((cosine - 1.0) / temperature)
        terms[f"near {temperature}"] = np.log(share @ kernel + NEAR_FLOOR).astype(np.float32)
        for name, events in popular.items():
            smoothed = np.log((events @ kernel + POPULAR_FLOOR) / kernel.sum(0)).astype(np.float32)
            terms[f"popular {name} {temperature}"] = np.broadcast_to(smoothed, own.shape)
    return terms


def mean_and_top(cosine: Float, own: Float, ever: Bool) -> tuple[Float, Float]:
    """The terms *mean* and *top 3* alone [P, N] (see `text_terms`)."""
    mean: Float = (history_shares(own) @ cosine).astype(np.float32)
    return mean, _nearest(cosine, ever)[1]


def _nearest(cosine: Float, ever: Bool) -> tuple[Float, Float]:
    """Largest cosine to the history, and the mean of the three largest [P, N]; zero without a history."""
    largest, top = np.zeros(ever.shape, np.float32), np.zeros(ever.shape, np.float32)
    for point in np.flatnonzero(ever.any(1)):
        near = three_largest(cosine[ever[point]])
        largest[point], top[point] = near[-1], near.mean(0)
    return largest, top


def three_largest(values: Float) -> Float:
    """Of each column of values [n, M], ascending [3, M]; all where there are fewer."""
    largest: Float = np.sort(values, axis=0)[-3:]
    return largest
