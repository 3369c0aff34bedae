"""Fitted and exported predictors on the tiny tables, made once for this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from advprior.pipeline.fit import finetune
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.runs import manifest_digest, new_run
from tests.shared import made_once
from tests.tiny import write_tiny
from tests.tiny_llm import write_tiny_llm


@dataclass
class Fitted:
    """Folder with ``tables/`` and ``models/<kind>/`` (exported)."""

    folder: Path

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    def model(self, kind: str) -> Path:
        return self.folder / "models" / kind


def export(run: Path) -> None:
    with new_run(run / "onnx", "export", config={}, inputs={"run": manifest_digest(run)}, key="x") as work:
        work.facts.update(load_predictor(run).export(work.path))


def llm_settings(base: Path, **training: object) -> dict:
    return {
        "base": str(base),
        "layers": 3,
        "tuned_layers": 2,
        "prompt": {"context": 160},
        "training": {"epochs": 3, "rank": 4, "batch_tokens": 1024, **training},
    }


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """For reading only: other processes read it, too."""
    return Fitted(made_once(tmp_path_factory, "fitted", fit_all))


def fit_all(folder: Path) -> None:
    """Tables, and every kind of predictor on them."""
    write_tiny(folder / "tables")
    base = write_tiny_llm(folder / "base")
    result = Fitted(folder)
    small = {"network": {"width": 8, "context": 16}, "training": {"epochs": 1, "points_a_history": 4}}
    encoder = {"base": str(base), "layers": 2}
    settings = {
        "llm": llm_settings(base),
        "popularity": {},
        "neighbours": {},
        "ease": {"ridges": [1, 10]},
        "l3ae": {"encoder": encoder, "pulls": [1, 100]},
        "sasrec": small,
        "hybrid": {**small, "encoder": {**encoder, "components": 4}},
        "text": {**encoder, "components": 2},
        "zero_shot": {"base": str(base)},
    }
    for kind, raw in settings.items():
        assert finetune(result.tables, result.model(kind), kind, predictor_class(kind).settings(raw))
        export(result.model(kind))
