"""What alike texts say of an advertiser that nobody has turned to yet: terms of the text prior beside its components.

A few principal components (see `advprior.predictors.text.logit`) keep little of what a text says. These terms read the
whole of it, and let data move an advertiser away from what its text says (docs/experiments, 2026-11-26-levers):

- *popularity smoothed over alike texts*, one weight for new advertisers and one for known ones;
- the cosine of texts to the user's history, as mean and as mean of the three largest;
- the *lift* that alike advertisers have among the same users.

Each is computed without the events of who is withheld at a point, as if they were new.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advprior.history.histories import Histories
from advprior.predictors.autoencoders import gram
from advprior.predictors.text.similar import lift_term, mean_and_top, smoothed_lift, text_kernel
from advprior.store.arrays import Bool, Double, Float, Int
from advprior.store.errors import AdvpriorError

TERMS = 5  # of `alike_terms`
WIDEST = 2000  # advertisers: lifts of each window and fold are products of three [N, N] matrices
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
    def of(cls, standard: Float, fitted: Int | None = None) -> Texts:
        """From standardised encodings [N, H]; without ``fitted``, all are."""
        unit = standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-9)
        cosine = (unit @ unit.T).astype(np.float32)
        places = np.arange(len(standard)) if fitted is None else fitted
        return cls(cosine, text_kernel(cosine, places), places)

    def lift(self, together: Float | Double) -> Float:
        """Smoothed log-lift [N, N] of users in common [F, F]; zero where nobody has turned to anyone."""
        return smoothed_lift(self.kernel, together, self.fitted)


@dataclass(frozen=True)
class Alike:
    """What a fitted run holds: how alike its texts are, and the smoothed log-lift [N, N] at the end of fitting."""

    texts: Texts
    lift: Float


def alike_terms(texts: Texts, own: Float, popular: Float, new: Bool, lift: Float) -> Float:
    """Terms [`TERMS`, P, N] from decayed events of the user and of everyone [P, N], none of them of who is ``new``.

    Parameters
    ----------
    own, popular : float32 [P, N]
    new : bool [P, N]
    lift : float32 [P, N]
        Of `lift_terms`, or of `advprior.predictors.text.similar.lift_term`.
    """
    weighed = (~new[:, texts.fitted]).astype(np.float32) @ texts.kernel.T
    smoothed = np.log((popular[:, texts.fitted] @ texts.kernel.T + POPULAR_FLOOR) / np.maximum(weighed, 1e-6)).astype(
        np.float32
    )
    mean, top = mean_and_top(texts.cosine, own, own > 0)
    return np.stack([smoothed * new, smoothed * ~new, mean, top, lift]).astype(np.float32)


def lift_terms(texts: Texts, histories: Histories, moments: Int, own: Float, withheld: Bool) -> Float:
    """Mean lift [P, N] over each point's history, as of the start of its window and without who is withheld at it.

    Points that withhold the same advertisers share their lifts: these come in folds.
    """
    size = withheld.shape[1]
    out = np.zeros((len(moments), size), np.float32)
    starts = np.unique(np.quantile(moments, np.arange(WINDOWS) / WINDOWS, method="lower"))
    window = np.searchsorted(starts, moments, side="right") - 1
    for place, start in enumerate(starts):
        within = np.flatnonzero(window == place)
        together = gram(histories.before(int(start)), size)
        masks, of_point = np.unique(np.packbits(withheld[within], axis=1), axis=0, return_inverse=True)
        for mask in range(len(masks)):
            points = within[of_point.ravel() == mask]
            shown = ~withheld[points[0]]
            out[points] = lift_term(own[points], texts.lift(together * np.outer(shown, shown)))
    return out


def require_narrow(size: int) -> None:
    """Refuse catalogs whose matrices would not end in time.

    Raises
    ------
    AdvpriorError
        ``CFG002`` above `WIDEST` advertisers.
    """
    if size > WIDEST:
        raise AdvpriorError(
            "CFG002",
            "alike: true compares every advertiser with every other one, at several times in the past",
            where="settings of the text prior",
            actual=f"{size:,} advertisers",
            expected=f"at most {WIDEST:,}",
            fix="advprior finetune --set alike=false",
        )


def spread_of_new(residual: Float | Double) -> float:
    """Standard deviation (nats) over known advertisers [N] of what data says of them less what their texts say."""
    return float(np.std(residual, ddof=1)) if len(residual) > 1 else 0.0
