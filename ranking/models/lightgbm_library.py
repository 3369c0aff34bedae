"""LightGBM as this package uses it: loaded so that its threads do not spin, its refusals as coded errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from advprior.store.errors import AdvpriorError


def lightgbm_module() -> Any:
    """LightGBM, whose threads sleep while they wait for one another.

    By default OpenMP's waiting threads spin: on two shared cores a fit took 25 times as long (190 s, not 8 s). The
    setting is read when the library loads; a value that the user has set stays.
    """
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import lightgbm

    return lightgbm


def light_lightgbm_import() -> None:
    """Import LightGBM without scikit-learn and ``scipy.stats``: a third of what a service imports, and 60 MB.

    LightGBM loads them for its classes in scikit-learn's manner alone, and takes them for missing afterwards: for a
    process in which nobody may want those classes, as one that only serves. A scikit-learn or LightGBM that is loaded
    already stays as it is; a scikit-learn can be imported afterwards.
    """
    if "sklearn" in sys.modules or "lightgbm" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # to LightGBM it is not installed
    try:
        lightgbm_module()
    finally:
        del sys.modules["sklearn"]


@contextmanager
def lightgbm_errors(where: str) -> Iterator[None]:
    """What LightGBM refuses, as a coded error: settings can be wrong for the rows that they meet."""
    try:
        yield
    except lightgbm_module().basic.LightGBMError as error:
        raise AdvpriorError(
            "RNK038",
            "LightGBM cannot train with these settings on these rows",
            where=where,
            actual=str(error).splitlines()[0],
            fix="change `ranker` in the arms file",
        ) from error
