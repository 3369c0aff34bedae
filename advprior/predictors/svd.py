"""The SVD prior: what users with similar baskets buy, blended with popularity and the user's own habit.

The conventional control: an LLM prior that does not beat it earns nothing. Factors and blend weights are
fitted on labels before the cut-off; a user's counts are folded in as of each snapshot, so new purchases
count at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from advprior.histories import Histories, Int
from advprior.predictors import counts
from advprior.predictors.base import FitData, Float, Predictor, Scorer, log_softmax, require_parity
from advprior.targets import dense, next_advertisers, quality
from feature_repo.contract import CATALOG_FILE, SVD
from feature_repo.runs import write_json

Array = npt.NDArray[np.float64]
SMOOTHING = 0.5


class SVDSettings(BaseModel):
    """Settings of the SVD prior."""

    model_config = ConfigDict(extra="forbid")
    ranks: tuple[int, ...] = (8, 16, 32, 64)
    half_life_days: float = 60.0
    popularity_half_life_days: float = 30.0
    horizon_days: float = 7.0
    valid_days: float = 28.0
    seed: int = 0


def unit(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows scaled to length one; empty rows stay zero."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-12)


class SVDPredictor(Predictor):
    """log-softmax of log-popularity, a truncated-SVD reconstruction and the user's own log-counts."""

    kind = SVD

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        import json

        self.parameters = json.loads((self.run / "parameters.json").read_text())
        self.factors: Array = np.load(self.run / "factors.npy")

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> SVDSettings:
        return SVDSettings(**raw)

    @staticmethod
    def _factors(histories: Histories, cutoff: int, rank: int, settings: SVDSettings, size: int) -> Array:
        """Right factors [rank, N] of the users' unit log-count rows as of ``cutoff``."""
        from sklearn.utils.extmath import randomized_svd

        users = np.arange(len(histories), dtype=np.int64)
        rows = unit(np.log1p(counts.own(histories, users, np.asarray([cutoff]), settings.half_life_days, size)[:, 0]))
        rank = max(1, min(rank, min(rows.shape) - 1))
        return np.asarray(randomized_svd(rows, rank, random_state=settings.seed)[2], np.float64)

    @staticmethod
    def _parts(own: Array, log_popularity: Array, factors: Array) -> Array:
        """The three terms of the logits, [3, P, N]."""
        x = np.log1p(own)
        return np.stack([log_popularity, unit(x) @ factors.T @ factors, x])

    @classmethod
    def fit(cls, data: FitData, settings: SVDSettings, out: Path) -> dict[str, Any]:
        from scipy.optimize import minimize

        size, horizon = len(data.catalog), int(settings.horizon_days * counts.DAY)
        last = data.cutoff - horizon
        first = last - int(settings.valid_days * counts.DAY)
        user, cutoff = counts.weekly_points(data.histories, first, last, data.snapshot_every)
        truth = dense(*next_advertisers(data.histories, user, cutoff - 1, horizon), size)
        some = truth.sum(1) > 0
        user, cutoff, truth = user[some], cutoff[some], truth[some]
        moments, index = np.unique(cutoff, return_inverse=True)
        log_popularity = np.log(
            counts.popularity(data.histories, moments, settings.popularity_half_life_days, size) + SMOOTHING
        )[index]
        own = np.concatenate(
            [counts.own(data.histories, user[i : i + 1], cutoff[i : i + 1], settings.half_life_days, size)[0] for i in range(len(user))]
            or [np.zeros((0, size), np.float32)]
        )  # fmt: skip
        early = data.histories.before(first)

        def loss(weights: Array, parts: Array) -> tuple[float, Array]:
            logits = np.tensordot(weights, parts, 1)
            shifted = logits - logits.max(1, keepdims=True)
            probs = np.exp(shifted)
            total = probs.sum(1, keepdims=True)
            per = truth.sum(1, keepdims=True)
            nll = -((shifted - np.log(total)) * truth).sum() / truth.sum()
            grad = ((probs / total * per - truth)[None] * parts).sum((1, 2)) / truth.sum()
            return float(nll), grad

        weights, rank, best = np.asarray([1.0, 0.0, 0.0]), settings.ranks[0], float("inf")
        valid: dict[str, float] = {"points": 0}
        for candidate in settings.ranks if len(user) else ():
            # factors from before the labels that the weights are fitted on
            parts = cls._parts(own, log_popularity, cls._factors(early, first, candidate, settings, size))
            found = minimize(loss, np.asarray([1.0, 1.0, 0.5]), args=(parts,), jac=True, method="L-BFGS-B")
            if found.fun < best:
                weights, rank, best = found.x, candidate, float(found.fun)
                valid = quality(log_softmax(np.tensordot(weights, parts, 1)), truth)
        data.catalog.save(out / CATALOG_FILE)
        np.save(out / "factors.npy", cls._factors(data.histories, data.cutoff, rank, settings, size))
        named = dict(zip(("popularity", "neighbours", "own"), map(float, weights), strict=True))
        write_json(
            out / "parameters.json",
            {
                "weights": named,
                "half_life_days": settings.half_life_days,
                "popularity_half_life_days": settings.popularity_half_life_days,
            },
        )
        return {"rank": rank, "weights": named, "valid": valid}

    def _log_probs(self, own: npt.NDArray[Any], popularity: npt.NDArray[Any]) -> Float:
        weights = [self.parameters["weights"][k] for k in ("popularity", "neighbours", "own")]
        parts = self._parts(own.astype(np.float64), np.log(popularity.astype(np.float64) + SMOOTHING), self.factors)
        return log_softmax(np.tensordot(np.asarray(weights), parts, 1))

    def export(self, out: Path) -> dict[str, Any]:
        from advprior.predictors import graphs

        size = len(self.catalog)
        graphs.save_svd(out / "model.onnx", self.factors, self.parameters["weights"], SMOOTHING)
        rng = np.random.default_rng(0)
        own = (rng.gamma(0.3, 5.0, (6, size)) * (rng.random((6, size)) < 0.1)).astype(np.float32)
        own[0] = 0.0
        popularity = rng.gamma(0.3, 20.0, (6, size)).astype(np.float32)
        theirs = graphs.run(out / "model.onnx", {"own": own, "popularity": popularity})
        difference = float(np.abs(self._log_probs(own, popularity) - theirs).max())
        require_parity(difference, str(out))
        return {"parity": difference, "cases": len(own)}

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        return _SVDScorer(self, onnx, device, threads)


class _SVDScorer(Scorer):
    def __init__(self, predictor: SVDPredictor, onnx: Path, device: str, threads: int | None) -> None:
        from advprior.llm.engine import open_session

        self._session = open_session(onnx / "model.onnx", device=device, threads=threads)
        self.provider = self._session.provider
        self._parameters = predictor.parameters
        self._size = len(predictor.catalog)
        self._last: tuple[bytes, Float] | None = None

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        key = cutoffs.tobytes()
        if self._last is None or self._last[0] != key:
            half_life = float(self._parameters["popularity_half_life_days"])
            self._last = (key, counts.popularity(histories, cutoffs, half_life, self._size).astype(np.float32))
        own = counts.own(histories, users, cutoffs, float(self._parameters["half_life_days"]), self._size)
        flat = own.reshape(-1, self._size)
        popular = np.tile(self._last[1], (len(users), 1))
        return self._session.run_inputs({"own": flat, "popularity": popular}).reshape(own.shape)
