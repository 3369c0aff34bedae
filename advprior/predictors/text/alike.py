"""What alike texts say of an advertiser that nobody has turned to yet: terms of the text prior beside its components.

A few principal components (see `advprior.predictors.text.logit`) keep little of what a text says. These terms read the
whole of it, and let data move an advertiser away from what its text says (docs/experiments, 2026-11-26-levers):

- *popularity smoothed over alike texts*, one weight for new advertisers and one for known ones;
- the cosine of texts to the user's history, as mean and as mean of the three largest;
- the *lift* that alike advertisers have among the same users.

Each is computed without the events of who is withheld at a point, as if they were new. Up to `WIDEST` advertisers
similarities are arrays [N, N]; beyond it the closest texts of each are links (`advprior.predictors.text.wide_alike`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.autoencoders import WIDEST, gram
from advprior.predictors.text.closest import Closest
from advprior.predictors.text.logit import ROWS, Space
from advprior.predictors.text.similar import history_shares, lift_term, mean_and_top, smoothed_lift, text_kernel
from advprior.predictors.text.wide_alike import Together, WideLift, WideTexts
from advprior.store.arrays import Bool, Double, Float, Int

TERMS = 5  # of `alike_terms`
TOGETHER, CLOSEST = "together.npz", "closest.npz"  # users in common as of the end of fitting; links of a wide catalog
WINDOWS = 6  # of time, at whose starts lifts are counted for the points within
POPULAR_FLOOR = 1e-3  # of smoothed events, so that their log stays finite


@dataclass(frozen=True)
class Texts:
    """How alike the texts of a catalog are.

    Attributes
    ----------
    cosine : float32 [N, N]
        Of standardised encodings.
    kernel : float32 [N, F]
        Of `advprior.predictors.text.similar.text_kernel`: how far those that the run was fitted with speak for each.
    fitted : int64 [F]
        Where these stand among the N: later ones change nothing for them.
    """

    cosine: Float
    kernel: Float
    fitted: Int

    @classmethod
    def of(cls, unit: Float, fitted: Int) -> Texts:
        """From unit vectors [N, H]."""
        cosine = (unit @ unit.T).astype(np.float32)
        return cls(cosine, text_kernel(cosine, fitted), fitted)

    def spread(self, values: Float) -> Float:
        """Values of who speaks [P, F], smoothed over alike texts [P, N]."""
        return values @ self.kernel.T

    def mean_and_top(self, own: Float) -> tuple[Float, Float]:
        """Cosine to the history, its mean and that of the three largest [P, N]; zero without a history."""
        return mean_and_top(self.cosine, own, own > 0)

    def together(self, histories: Histories) -> Any:
        """Users in common, float64 [F, F], of those that speak, who are all advertisers while a run is fitted."""
        return gram(histories, len(self.cosine))

    def lift(self, together: Any) -> Lift:
        """The smoothed log-lift of users in common [F, F]; zero where nobody has turned to anyone."""
        return Lift(self, together)


@dataclass(frozen=True)
class Lift:
    """The smoothed log-lift [N, N]: made for a history's advertisers alone, unless it is ``whole``.

    Attributes
    ----------
    texts : Texts
    together : float [F, F]
    matrix : float32 [N, N], optional
    """

    texts: Texts
    together: Float | Double
    matrix: Float | None = None

    def whole(self) -> Lift:
        """All of it, for many histories."""
        return Lift(self.texts, self.together, smoothed_lift(self.texts.kernel, self.together, self.texts.fitted))

    def term(self, own: Float) -> Float:
        """Mean lift [P, N] over each history; zero without one."""
        if self.matrix is not None:
            return lift_term(own, self.matrix)
        places = np.flatnonzero(own.any(0))
        rows = smoothed_lift(self.texts.kernel, self.together, self.texts.fitted, places)
        term: Float = (history_shares(own)[:, places] @ rows).astype(np.float32)
        return term


#: `advprior.predictors.text.wide_alike` says what a wide catalog's are.
AlikeTexts = Texts | WideTexts


@dataclass(frozen=True)
class Alike:
    """What a fitted run holds: how alike its texts are, and the smoothed log-lift at the end of fitting."""

    texts: AlikeTexts
    lift: Lift | WideLift


def texts_of(space: Space, encodings: Float) -> AlikeTexts:
    """How alike encodings [N, H] are, in the space of a run."""
    unit, places = unit_vectors(space, encodings), np.arange(len(encodings))
    return Texts.of(unit, places) if len(unit) <= WIDEST else WideTexts(Closest.of(unit, places))


def unit_vectors(space: Space, encodings: Float) -> Float:
    """Standardised encodings [N, H] at unit length."""
    unit = np.empty(encodings.shape, np.float32)
    for start in range(0, len(encodings), ROWS):
        standard = space.standard(encodings[start : start + ROWS])
        unit[start : start + ROWS] = standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-9)
    return unit


def alike_terms(texts: AlikeTexts, own: Float, popular: Float, new: Bool, lift: Float) -> Float:
    """Terms [`TERMS`, P, N] from decayed events of the user and of everyone, none of the user's of who is ``new``.

    Parameters
    ----------
    own, popular : float32 [P, N]
    new : bool [P, N]
        Where they are the same at all points, both may be broadcast from one.
    lift : float32 [P, N]
        Of `lift_terms`, or a lift's ``term``.
    """
    same = popular.strides[0] == 0 and new.strides[0] == 0
    points = slice(0, 1 if same else None)
    shown = ~new[points]
    weighed = texts.spread(shown[:, texts.fitted].astype(np.float32))
    events = texts.spread((popular[points] * shown)[:, texts.fitted])
    smoothed = np.log((events + POPULAR_FLOOR) / np.maximum(weighed, 1e-6)).astype(np.float32)
    mean, top = texts.mean_and_top(own)
    return np.stack([smoothed * new, smoothed * ~new, mean, top, lift]).astype(np.float32)


def lift_terms(texts: AlikeTexts, histories: Histories, moments: Int, own: Float, withheld: Bool) -> Float:
    """Mean lift [P, N] over each point's history, as of the start of its window and without who is withheld at it.

    Points that withhold the same advertisers share their lifts: these come in folds.
    """
    size = withheld.shape[1]
    out = np.zeros((len(moments), size), np.float32)
    starts = np.unique(np.quantile(moments, np.arange(WINDOWS) / WINDOWS, method="lower"))
    window = np.searchsorted(starts, moments, side="right") - 1
    for place, start in enumerate(starts):
        within = np.flatnonzero(window == place)
        together = texts.together(histories.before(int(start)))
        masks, of_point = np.unique(np.packbits(withheld[within], axis=1), axis=0, return_inverse=True)
        for mask in range(len(masks)):
            points = within[of_point.ravel() == mask]
            out[points] = texts.lift(without(together, withheld[points[0]])).term(own[points])
    return out


def without(together: Together | Double, withheld: Bool) -> Any:
    """Users in common as if nobody had turned to some advertisers [N]."""
    return together.without(withheld) if isinstance(together, Together) else together * np.outer(~withheld, ~withheld)


def save_alike(folder: Path, texts: AlikeTexts, histories: Histories) -> None:
    """What `load_alike` needs beside the encodings, into the folder of a run."""
    together = texts.together(histories)
    if isinstance(texts, WideTexts):
        np.savez_compressed(folder / TOGETHER, **together.arrays())
        np.savez(folder / CLOSEST, **texts.closest.arrays())
    else:
        np.savez_compressed(folder / TOGETHER, together=together, fitted=texts.fitted)


def load_alike(folder: Path, space: Space, encodings: Float) -> Alike:
    """What a run holds of its texts; ``encodings`` [N, H] are the run's."""
    with np.load(folder / TOGETHER) as saved:
        if (folder / CLOSEST).is_file():
            with np.load(folder / CLOSEST) as closest:
                wide = WideTexts(Closest.load(closest))
            return Alike(wide, wide.lift(Together.load(saved)))
        texts = Texts.of(unit_vectors(space, encodings), saved["fitted"])
        return Alike(texts, texts.lift(saved["together"]).whole())


def extend_alike(run: Path, out: Path, space: Space, encodings: Float, places: Int) -> None:
    """The same into ``out`` for more advertisers, where those of ``run`` stand at ``places``."""
    if (run / CLOSEST).is_file():
        with np.load(run / CLOSEST) as saved:
            closest = Closest.of(unit_vectors(space, encodings), places[saved["fitted"]])
        np.savez(out / CLOSEST, **closest.arrays())
        return
    with np.load(run / TOGETHER) as saved:
        np.savez_compressed(out / TOGETHER, together=saved["together"], fitted=places[saved["fitted"]])


def spread_of_new(residual: Float | Double) -> float:
    """Standard deviation (nats) over known advertisers [N] of what data says of them less what their texts say."""
    return float(np.std(residual, ddof=1)) if len(residual) > 1 else 0.0
