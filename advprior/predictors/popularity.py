"""The popularity prior: what everyone turns to lately, the same for every user. The floor of any comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from advprior.history import counts
from advprior.history.histories import Histories
from advprior.history.targets import quality_by_row, targets_of
from advprior.predictors.base import EVERYONE, FitData, Predictor, Scorer
from advprior.predictors.logit import log_softmax
from advprior.predictors.quality import MODEL
from advprior.runtime.parity import require_parity
from advprior.store.arrays import Float, Int
from advprior.store.contract import CATALOG_FILE, POPULARITY
from advprior.store.runs import write_json


class PopularitySettings(BaseModel):
    """Settings of the popularity prior."""

    model_config = ConfigDict(extra="forbid")
    half_lives_days: tuple[float, ...] = (14.0, 30.0, 90.0, 365.0)
    smoothing: float = 0.5
    horizon_days: float = 7.0
    valid_days: float = 21.0


class PopularityPredictor(Predictor):
    """log P(advertiser) from decayed events of all users; half-life by likelihood on the last labels."""

    kind = POPULARITY

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.parameters = json.loads((self.run / "parameters.json").read_text())

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> PopularitySettings:
        return PopularitySettings(**raw)

    @property
    def reads(self) -> tuple[str, ...]:
        return (EVERYONE,)

    @classmethod
    def fit(cls, data: FitData, settings: PopularitySettings, out: Path) -> dict[str, Any]:
        horizon = int(settings.horizon_days * counts.DAY)
        last = data.cutoff - horizon
        user, cutoff = counts.weekly_points(
            data.histories, last - int(settings.valid_days * counts.DAY), last, data.snapshot_every
        )
        truth = targets_of(data.histories, user, cutoff - 1, horizon, len(data.catalog))
        moments, index = np.unique(cutoff, return_inverse=True)
        scores = {}
        for half_life in settings.half_lives_days:
            weight = counts.popularity(data.histories, moments, half_life, len(data.catalog))
            scores[half_life] = quality_by_row(log_softmax(np.log(weight + settings.smoothing)), index, truth)
        best = min(scores, key=lambda h: scores[h]["nll"] if scores[h]["points"] else h)
        data.catalog.save(out / CATALOG_FILE)
        write_json(out / "parameters.json", {"half_life_days": best, "smoothing": settings.smoothing})
        return {"half_life_days": best, "valid": {MODEL: scores[best]}}

    def export(self, out: Path) -> dict[str, Any]:
        from advprior.runtime import graphs

        size = len(self.catalog)
        graphs.save_popularity(out / "model.onnx", size, float(self.parameters["smoothing"]))
        sample = np.random.default_rng(0).gamma(0.3, 20.0, (5, size)).astype(np.float32)
        ours = log_softmax(np.log(sample + self.parameters["smoothing"]))
        theirs = graphs.run(out / "model.onnx", {"popularity": sample})
        return {**require_parity(theirs, ours, str(out)), "cases": len(sample)}

    def scorer(self, onnx: Path, device: str = "auto", threads: int | None = None) -> Scorer:
        return _PopularityScorer(self, onnx, device, threads)


class _PopularityScorer(Scorer):
    same_for_all = True

    def __init__(self, predictor: PopularityPredictor, onnx: Path, device: str, threads: int | None) -> None:
        from advprior.runtime.session import open_session

        self._session = open_session(onnx / "model.onnx", device=device, threads=threads, small=True)
        self.provider = self._session.provider
        self.half_lives = (float(predictor.parameters["half_life_days"]),)
        self._popularity = counts.PopularityCache(self.half_lives[0], len(predictor.catalog))

    def score(self, histories: Histories, users: Int, cutoffs: Int) -> Float:
        priors = self._session.run_inputs({"popularity": self._popularity(histories, cutoffs)})
        return np.broadcast_to(priors, (len(users), *priors.shape)).copy()
