"""ranking: what priors do to a ranker. Frames through Feast, LightGBM, ablations, lift, reports.

The commands (``advprior rank --help``) work on folders; the names below do the same in Python, for notebooks. Each is
imported when it is first used, so that ``import ranking`` costs nothing.

====================  ================================================================================
`Frame`               impressions with what was known before each: load one, add a feature, split elsewhere
`load_arms`, `Arms`   what is compared: choose arms, add one of your own, change LightGBM's settings
`Arm`, `RankerConfig` one arm; the ranker's settings
`ablate`              train and measure every arm
`AblationResult`      what `ablate` returns: ``print``, ``.plot()``, ``.frame()``, ``.compare(a, b)``, ``.save(folder)``
`Lifts`               differences with their intervals
`CandidateCurve`      recall and concentration against the quota of slots for predicted advertisers
`TwoByTwo`            candidates with and without priors, ranked with and without
`AdvpriorError`       what bad input raises: code, place, and what fixes it
====================  ================================================================================

Nothing here changes its arguments. Priors arrive through Feast: this package never imports the predictor, torch,
transformers, optimum or onnxruntime (the fit of the towers aside, under the extra ``[train]``).

>>> arms = load_arms().only("neighbours").with_arm("hour", ["prior_hour"], label="+ hour of day")
>>> [arm.name for arm in arms.arms], arms.with_ranker(num_leaves=15).ranker.num_leaves
(['baseline', 'neighbours', 'hour'], 15)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advprior.store.errors import AdvpriorError
    from ranking.candidates.curve import CandidateCurve
    from ranking.candidates.endtoend import TwoByTwo
    from ranking.evidence.ablation import ablate
    from ranking.evidence.lift import Lifts
    from ranking.evidence.result import AblationResult
    from ranking.frame.table import Frame
    from ranking.models.arms import Arm, Arms, load_arms
    from ranking.models.config import RankerConfig

__all__ = [
    "AblationResult",
    "AdvpriorError",
    "Arm",
    "Arms",
    "CandidateCurve",
    "Frame",
    "Lifts",
    "RankerConfig",
    "TwoByTwo",
    "ablate",
    "load_arms",
]
_HOMES = {
    "AblationResult": "ranking.evidence.result",
    "AdvpriorError": "advprior.store.errors",
    "Arm": "ranking.models.arms",
    "Arms": "ranking.models.arms",
    "CandidateCurve": "ranking.candidates.curve",
    "Frame": "ranking.frame.table",
    "Lifts": "ranking.evidence.lift",
    "RankerConfig": "ranking.models.config",
    "TwoByTwo": "ranking.candidates.endtoend",
    "ablate": "ranking.evidence.ablation",
    "load_arms": "ranking.models.arms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # from now on without a detour
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
