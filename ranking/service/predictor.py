"""Scores of a numpy block on one thread: trees compiled to machine code where lleaves is installed, LightGBM elsewhere.

Compiling takes seconds, so it is done once a model and machine and kept; its scores are held to LightGBM's before they
are trusted. Contributions always come from LightGBM, which has exact TreeSHAP.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.arrays import Double
from advprior.store.runs import digest, sha256_file
from ranking.models.calibration import apply_calibration
from ranking.models.ranker import MODEL_FILE, Ranker
from ranking.service.rows import Matrix

log = logging.getLogger("advprior.service")
#: Largest difference of a compiled score from LightGBM's, in log-odds.
PARITY = 1e-6
_PROBES = 256
#: Compiled models that stay, the last used: a ranker a week would fill the disk otherwise.
_KEPT_TREES = 32
#: What compiles, and how long it may take.
_COMPILE = "import sys, lleaves; lleaves.Model(model_file=sys.argv[1]).compile(cache=sys.argv[2], raw_score=True)"
_COMPILE_S = 1800.0


class Predictor:
    """A ranker's probabilities and contributions; what its log-odds start from is added to the trees.

    Parameters
    ----------
    ranker : Ranker
        Loaded from ``folder``.
    folder : Path
    cache : Path, optional
        Where compiled trees are stored; without one they are not compiled.

    Attributes
    ----------
    kind : str
        ``lleaves`` or ``lightgbm``: what scores.
    """

    def __init__(self, ranker: Ranker, folder: Path, cache: Path | None = None) -> None:
        self.ranker = ranker
        self.kind = "lightgbm"
        self._raw: Callable[[Matrix], Double] = self._by_lightgbm
        if cache is not None:
            self._compile(folder, cache)

    def scores(self, matrix: Matrix) -> Double:
        """Calibrated probability of each row."""
        return apply_calibration(self.ranker.calibration, self.ranker.started(matrix, self._raw(matrix)))

    def contributions(self, matrix: Matrix) -> Double:
        """Exact TreeSHAP, float64 [rows, features + 1]: log-odds by feature, then the base.

        A row sums to the raw score.
        """
        booster, _ = self.ranker._fitted()
        values = booster.predict(matrix, pred_contrib=True, num_iteration=self.ranker.rounds, num_threads=1)
        of_trees = np.asarray(values, dtype=np.float64)
        of_trees[:, -1] += self.ranker.correction
        return of_trees if self.ranker.start is None else self.ranker.start.contributions(matrix, of_trees)

    def _by_lightgbm(self, matrix: Matrix) -> Double:
        return self.ranker.trees(matrix, 1)

    def _compile(self, folder: Path, cache: Path) -> None:
        try:
            import lleaves
        except ImportError:
            return
        path = folder / MODEL_FILE
        about = {"model": sha256_file(path), "lleaves": version("lleaves"), "cpu": _cpu(), "format": 1}
        compiled_file = cache / f"trees-{digest(about)}.o"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            if not compiled_file.is_file():
                beside = compiled_file.with_suffix(f".{os.getpid()}.tmp")
                compile_apart(path, beside)
                os.replace(beside, compiled_file)  # two workers that compile at once leave one whole file
            model = lleaves.Model(model_file=str(path))
            model.compile(cache=str(compiled_file), raw_score=True)  # loads it
            os.utime(compiled_file)
            forget_unused(cache)
        except Exception as error:  # compiling is an optimisation: whatever fails in it must not stop the service
            log.warning("the trees cannot be compiled, LightGBM scores", extra={"error": str(error)})
            return

        def compiled(matrix: Matrix) -> Double:
            return np.asarray(model.predict(np.ascontiguousarray(matrix, dtype=np.float64), n_jobs=1))

        worst = parity(compiled, self._by_lightgbm, self.ranker)
        if worst > PARITY:
            log.warning("compiled trees disagree with LightGBM, which scores instead", extra={"worst": worst})
            return
        self._raw, self.kind = compiled, "lleaves"


def compile_apart(model: Path, target: Path) -> None:
    """Compile a model's trees into a file, in a process of its own.

    Compiling takes seconds of Python and tens of megabytes, part of which LLVM keeps until its process ends: neither
    is for a process that answers requests.

    Raises
    ------
    subprocess.SubprocessError
        When that process fails, or takes longer than `_COMPILE_S`.
    """
    words = [sys.executable, "-c", _COMPILE, str(model), str(target)]
    subprocess.run(words, check=True, capture_output=True, timeout=_COMPILE_S)


def forget_unused(cache: Path, keep: int = _KEPT_TREES) -> None:
    """Remove compiled trees but for those that were used last; whoever still needs one compiles it again."""
    times = {}
    for path in cache.glob("trees-*.o"):
        with suppress(FileNotFoundError):  # another process tidies up as well
            times[path] = path.stat().st_mtime
    for path in sorted(times, key=times.__getitem__, reverse=True)[keep:]:
        path.unlink(missing_ok=True)


def parity(one: Callable[[Matrix], Double], other: Callable[[Matrix], Double], ranker: Ranker) -> float:
    """Largest difference of two scorers on random rows with gaps, made to fall on both sides of many splits."""
    _, encoder = ranker._fitted()
    rng = np.random.default_rng(0)
    rows = rng.standard_cauchy((_PROBES, len(encoder.features))).astype(np.float32)
    for i in encoder.categorical:
        rows[:, i] = rng.integers(0, len(encoder.categories[encoder.features[i]]) + 1, _PROBES)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return float(np.abs(one(rows) - other(rows)).max())


def _cpu() -> str:
    """What machine code is made for."""
    try:
        import llvmlite.binding as llvm

        return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    except Exception:
        return platform.processor() or platform.machine()


def default_cache() -> Path:
    """The user's cache folder."""
    root: Any = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "advprior"
