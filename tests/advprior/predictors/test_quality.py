"""Every fit is measured beside what it starts from and popularity, and one that learned nothing says so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advprior.cli import main
from advprior.history.counts import DAY
from advprior.history.targets import Targets
from advprior.predictors.quality import MODEL, POPULAR, START, learned_nothing, popularity_quality, quality_lines
from advprior.store.runs import read_manifest
from tests.advprior.conftest import Fitted
from tests.advprior.history.test_histories import histories_of

NLL = st.floats(0.1, 12)


def row(nll: float) -> dict[str, float]:
    return {"nll": nll, "recall@5": 0.2, "recall@20": 0.4, "points": 9}


@given(NLL, NLL, NLL)
def test_worse_than_its_start_or_popularity_is_said(model: float, start: float, popular: float) -> None:
    facts = {"predictor": "llm", "valid": {MODEL: row(model), START: row(start), POPULAR: row(popular)}}
    text = "\n".join(quality_lines(facts))
    assert ("warning: worse" in text) == (model > min(start, popular))
    if model > start:
        assert f"NLL {model:.3f} against {start:.3f}" in text
    assert "warning: no better" in "\n".join(quality_lines({**facts, "strength": 0.0}))


@pytest.mark.parametrize("kind", ["llm", "popularity", "neighbours", "sasrec", "hybrid", "text", "zero_shot"])
def test_every_kind_is_measured_beside_popularity(fitted: Fitted, kind: str) -> None:
    facts = read_manifest(fitted.model(kind))["facts"]
    text = "\n".join(quality_lines(facts))
    if kind == "zero_shot":  # nothing is fitted, and a forward of the whole model is dear
        assert "not measured" in text
        return
    sides = facts["valid"]
    assert {MODEL} <= sides.keys()
    assert (POPULAR in sides) == (kind != "popularity")
    assert (START in sides) == (kind in ("llm", "sasrec", "hybrid"))
    for side in {MODEL, START, POPULAR} & sides.keys():
        assert np.isfinite(sides[side]["nll"])
        assert f"NLL {sides[side]['nll']:.3f}" in text
    assert ("warning" in text) == (learned_nothing(facts) is not None)


def test_a_fit_that_learns_nothing_says_so_at_once(
    fitted: Fitted, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate that breaks the network, the command's own output says that it is of no use."""
    changes = ("layers=1", "tuned_layers=1", "prompt.context=96", "training.epochs=1", "training.head_lr=5")
    words = [word for change in (f"base={fitted.folder / 'base'}", *changes) for word in ("--set", change)]
    with pytest.raises(SystemExit) as left:
        main(["finetune", "--tables", str(fitted.tables), "--out", str(tmp_path / "llm"), *words])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "habit and drift alone" in text
    assert "warning: worse than the habit and drift that it starts from" in text


def test_popularity_s_quality_is_of_the_past_alone() -> None:
    events = [[(day * DAY, 0) for day in range(1, 20)], [(25 * DAY, 1)]]
    truth = Targets.from_dense(np.array([[0, 1]], np.float32))
    ours = popularity_quality(histories_of(events), np.array([20 * DAY]), truth)
    cut = popularity_quality(histories_of(events).before(20 * DAY), np.array([20 * DAY]), truth)
    assert ours == cut
    assert ours["nll"] > 1
