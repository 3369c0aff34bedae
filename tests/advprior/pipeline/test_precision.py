"""Smaller numbers pass only where the priors stay what they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from advprior.cli import main
from advprior.pipeline import precision as reduced
from advprior.pipeline.precision import damage
from advprior.predictors.logit import log_softmax
from advprior.runtime.precision import ROUNDING, precision_of
from advprior.store.runs import read_manifest
from tests.advprior.conftest import Fitted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def _run(*arguments: object) -> int:
    try:
        main([str(a) for a in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


@pytest.fixture
def run(fitted: Fitted, tmp_path: Path) -> Path:
    return shutil.copytree(fitted.model("llm"), tmp_path / "llm")


def test_a_reduced_graph_passes_the_gate_and_scores(
    fitted: Fitted,
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    precision = "fp16"
    reduced_export = ("export", run, "--precision", precision, "--tables", fitted.tables, "--device", "cpu")
    assert _run(*reduced_export) == 0, capsys.readouterr()
    assert f"{precision} on CPU: log-probs off by" in capsys.readouterr().out
    facts = read_manifest(run / "onnx")["facts"]
    assert (facts["precision"], facts["attention"]) == (precision, "blocks")
    assert facts["gate"] == {"provider": "CPUExecutionProvider", "device": "CPU"}
    assert precision_of(run / "onnx/model.onnx") == precision
    assert 0 < facts["damage"]["mean_difference"] <= reduced.LIMITS["mean_difference"]
    assert np.isfinite(facts["damage"]["nll_change"])
    graph = onnx.load(str(run / "onnx/model.onnx")).graph
    assert sum(w.data_type == TensorProto.FLOAT16 and len(w.dims) == 2 for w in graph.initializer) >= 6
    assert _run("score", run, "--tables", fitted.tables, "--out", run.parent / "priors", "--last", 1) == 0
    scored = read_manifest(run.parent / "priors")["facts"]
    assert (scored["precision"], scored["gate"]) == (precision, facts["gate"])
    assert "was measured on" not in capsys.readouterr().out
    # where it was measured elsewhere, the score says so
    manifest = json.loads((run / "onnx/manifest.json").read_text())
    manifest["facts"]["gate"] = {"provider": "CUDAExecutionProvider", "device": "NVIDIA H100"}
    (run / "onnx/manifest.json").write_text(json.dumps(manifest))
    assert _run("score", run, "--tables", fitted.tables, "--out", run.parent / "other", "--last", 1) == 0
    assert "what fp16 damages was measured on NVIDIA H100, not on this device" in capsys.readouterr().out
    # the same command again reuses it, and fp32 is another export
    assert _run(*reduced_export) == 0
    assert "unchanged" in capsys.readouterr().out
    assert _run("export", run) == 0
    assert read_manifest(run / "onnx")["facts"]["precision"] == "fp32"


def test_a_graph_beyond_a_limit_is_refused_and_the_old_export_stays(
    fitted: Fitted,
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (run / "onnx/model.onnx").read_bytes()
    monkeypatch.setitem(ROUNDING, "fp16", -1.0)  # even no difference at all, which some processors give, is beyond it
    monkeypatch.setitem(reduced.LIMITS, "mean_difference", 1e-9)
    assert _run("export", run, "--precision", "fp16", "--tables", fitted.tables) == 2
    message = capsys.readouterr().err
    assert "PRI015" in message
    assert "in a batch differ by" in message
    assert "mean_difference" in message
    assert (run / "onnx/model.onnx").read_bytes() == before


def test_the_gate_needs_tables_and_a_network(
    fitted: Fitted,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run("export", run, "--precision", "fp16") == 2
    assert "PRI016" in capsys.readouterr().err
    control = shutil.copytree(fitted.model("popularity"), tmp_path / "popularity")
    assert _run("export", control, "--precision", "fp16", "--tables", fitted.tables) == 2
    assert "PRI014" in capsys.readouterr().err


def test_damage_by_hand() -> None:
    full = log_softmax(np.asarray([[3.0, *range(-20, 0)], [0.0] * 21]))
    same = damage(full, full)
    assert (same.mean_difference, same.max_difference, same.top10_overlap) == (0.0, 0.0, 1.0)
    assert np.isnan(same.nll_change)
    assert same.exceeded() == []
    turned = damage(full, full[:, ::-1].copy())
    assert turned.exceeded()[0].startswith("mean_difference")
    assert any(said.startswith("top10_overlap") for said in turned.exceeded())
    assert damage(full, np.full_like(full, np.nan)).exceeded()
