"""A run with `alike` over a wide catalog, from fit to a longer one: with links to all it is that of a narrow one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from advprior.cli import main
from advprior.history.histories import micros
from advprior.history.read import load_histories
from advprior.pipeline.fit import finetune
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.runs import read_manifest
from tests.advprior.conftest import export
from tests.planted import write_planted
from tests.tiny import PLAN

RUNS = ("arrays", "links", "few")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_planted(folder / "before", leave_out=("t5", "s5"))
    write_planted(folder / "after")
    settings = predictor_class("text").settings({"base": "lexical", "components": 4, "alike": True})
    with pytest.MonkeyPatch.context() as patch:
        for name in RUNS:
            if name != "arrays":
                patch.setattr("advprior.predictors.text.alike.WIDEST", 0)
                patch.setattr("advprior.predictors.text.closest.LINKS", {"links": 1000, "few": 4}[name])
            finetune(folder / "before", folder / name, "text", settings)
            longer = str(folder / f"{name}2")
            with pytest.raises(SystemExit) as leave:
                main(["catalog", "extend", str(folder / name), "--tables", f"{folder}/after", "--out", longer])
            assert not leave.value.code
            for run in (name, f"{name}2"):
                export(folder / run)
    return folder


@pytest.mark.parametrize(("tables", "more"), [("before", ""), ("after", "2")])
def test_links_to_all_score_as_arrays(runs: Path, tables: str, more: str) -> None:
    histories, _ = load_histories(runs / tables)
    answers = {}
    for name in RUNS:
        scorer = load_predictor(runs / f"{name}{more}").scorer(runs / f"{name}{more}" / "onnx", "cpu", 1)
        answers[name] = scorer.score(histories, np.arange(40), np.asarray([micros(PLAN.finetune_end)], np.int64))
    assert not (runs / "arrays" / "closest.npz").exists()
    np.testing.assert_allclose(answers["links"], answers["arrays"], rtol=1e-3, atol=5e-3)
    np.testing.assert_allclose(np.exp(answers["few"]).sum(-1), 1.0, rtol=1e-4)
    assert np.abs(answers["few"] - answers["arrays"]).max() > 0.02  # the others are not told apart


def test_links_to_all_validate_as_arrays(runs: Path) -> None:
    nats = {name: read_manifest(runs / name)["facts"]["valid"]["model"]["nll"] for name in RUNS}
    assert nats["links"] == pytest.approx(nats["arrays"], rel=1e-4)
    assert nats["few"] == pytest.approx(nats["arrays"], rel=0.05)
