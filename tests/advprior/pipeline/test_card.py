"""The model card: true to the run's records, without paths of the machine, and its code runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from advprior.cli import main
from advprior.evaluation.ladder import evaluate
from advprior.evaluation.of_run import measured as of_run
from advprior.evaluation.options import Options
from advprior.pipeline.card import _base, card, write_card
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from tests.advprior.conftest import Fitted
from tests.tiny import PLAN, WEEK

KINDS = ("llm", "popularity", "neighbours")


@pytest.fixture(scope="module")
def measured(fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "ladder.json"
    runs = [fitted.model(kind) for kind in KINDS]
    evaluate(runs, fitted.tables, PLAN.finetune_end, Options(horizon=4 * WEEK, replicates=20, device="cpu"), out=out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_says_what_the_records_say(fitted: Fitted, measured: Path, kind: str) -> None:
    run = fitted.model(kind)
    text = card(run, measured=of_run(measured, run))
    facts = read_manifest(run)["facts"]
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "advprior"
    assert kind in head["tags"]
    result = json.loads(measured.read_text())
    arm = kind if kind == "llm" else f"{kind} (2)"
    (row,) = (row for row in result["arms"] if row["name"] == arm)
    metrics = {m["type"]: m["value"] for m in head["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {m: pytest.approx(row[m], abs=1e-6) for m in ("recall@1", "recall@5", "recall@20", "mrr", "nll")}
    for row in result["arms"]:
        assert f"| {row['name']} | {row['recall@1']:.4f} | {row['recall@5']:.4f} |" in text
    for fact in (facts["model_cutoff"], facts["history_start"], facts["catalog_version"], f"{facts['users']} users"):
        assert fact in text
    parity = read_manifest(run / "onnx")["facts"]["parity"]
    assert f"{parity:.1e} in log-prob" in text
    settings = yaml.safe_load(re.search(r"## Settings\n\n```yaml\n(.*?)```", text, re.DOTALL)[1])
    assert ("base" in settings) == (kind == "llm")
    assert ("| base licence | not known here" in text) == (kind == "llm")
    assert ("- users without a history are given habit and drift alone: none came" in text) == (kind == "llm")
    assert str(fitted.folder) not in text  # neither the base's path nor any other
    assert "{" not in text.replace(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "")  # nothing left unfilled


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_on_a_card_runs(
    fitted: Fitted, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", card(fitted.model(kind)), re.DOTALL)[1]
    (tmp_path / kind).symlink_to(fitted.model(kind))
    (tmp_path / "tables").symlink_to(fitted.tables)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "card", "exec"), {})
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "user u000"
    shares = [float(line.split()[0]) for line in lines]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert all("house" in line for line in lines)


def test_without_an_evaluation_it_says_so(fitted: Fitted) -> None:
    text = card(fitted.model("neighbours"))
    assert "Not measured" in text
    assert "model-index" not in text


def test_an_evaluation_of_other_runs_is_refused(fitted: Fitted, measured: Path, tmp_path: Path) -> None:
    result = json.loads(measured.read_text())
    del result["about"]["runs"]["llm"]
    (tmp_path / "other.json").write_text(json.dumps(result))
    (tmp_path / "none.json").write_text("{}")
    for name, code in (("other.json", "PRI046"), ("none.json", "CFG001"), ("missing.json", "CFG001")):
        with pytest.raises(AdvpriorError) as caught:
            of_run(tmp_path / name, fitted.model("llm"))
        assert caught.value.code == code


def test_the_command_writes_a_card_and_replaces_cards_only(
    fitted: Fitted, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "CARD.md"
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            main(["card", str(fitted.model("llm")), "--evaluation", str(measured), "--out", str(out)])
        assert left.value.code == 0
        assert "card: " in capsys.readouterr().out
    assert out.read_text() == card(fitted.model("llm"), measured=of_run(measured, fitted.model("llm")))
    out.write_text("my own words")
    with pytest.raises(AdvpriorError) as caught:
        write_card(fitted.model("llm"), out)
    assert caught.value.code == "PRI047"
    assert out.read_text() == "my own words"
    with pytest.raises(SystemExit):
        main(["card", str(fitted.model("llm"))])
    assert capsys.readouterr().out == card(fitted.model("llm"))


def test_the_licence_of_a_base_is_stated_where_it_is_known() -> None:
    origin = {"kind": "package", "file": "m.gguf", "sha256": "0", "layers": 10, "of_layers": 30, "stored_as": "Q4_1"}
    known = _base({**origin, "source": "HuggingFaceTB/SmolLM2-135M-Instruct"})
    assert (known["licence"], known["hub_id"]) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert (known["stored_as"], known["bits"]) == ("Q4_1", "4")
    other = _base({**origin, "source": "someone/model", "stored_as": "F16"})
    assert other["bits"] is None
    assert (other["licence"], other["hub_id"]) == (None, "someone/model")
    own = _base({**origin, "kind": "folder", "source": "/home/me/HuggingFaceTB/model"})
    assert (own["licence"], own["hub_id"], own["source"]) == (None, None, "model")
