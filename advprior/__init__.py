"""advprior: advertiser priors from a small LLM, measured on your own ranker.

Tables -> histories -> predictor -> log-probs -> priors in a Feast store. The commands do it on files (``advprior
--help``); the names below do it on data frames, for notebooks. Each is imported when it is first used, so that
``import advprior`` costs nothing.

=====================  ===============================================================
`load_priors`          the priors of a scoring run, or as published, as frame or array
`load_predictor`       a fitted predictor from its run folder
`score_users`          its priors for users that are given as a frame of events
`fit`                  fit and export a predictor on frames
`Priors`               what `load_priors` returns
`AdvpriorError`        what bad input raises: code, place, and what fixes it
=====================  ===============================================================

Nothing here changes its arguments.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from advprior.frames.predictors import fit, load_predictor, score_users
    from advprior.frames.priors import Priors, load_priors
    from advprior.store.errors import AdvpriorError

__all__ = ["AdvpriorError", "Priors", "fit", "load_predictor", "load_priors", "score_users"]
_HOMES = {
    "AdvpriorError": "advprior.store.errors",
    "Priors": "advprior.frames.priors",
    "load_priors": "advprior.frames.priors",
    "fit": "advprior.frames.predictors",
    "load_predictor": "advprior.frames.predictors",
    "score_users": "advprior.frames.predictors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # from now on without a detour
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
