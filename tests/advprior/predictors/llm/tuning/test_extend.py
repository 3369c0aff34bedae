"""New advertisers get rows from their names: old ones keep theirs, new ones stand better than popularity puts them."""

from __future__ import annotations

import numpy as np
import pytest

from advprior.cli import main
from advprior.cli.catalog import changes, read
from advprior.history.catalog import Catalog
from advprior.history.histories import build_histories, micros
from advprior.pipeline.fit import finetune
from advprior.predictors.logit import log_softmax
from advprior.predictors.offset import OffsetTerms
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from tests.advprior.conftest import export
from tests.parity import assert_distributions
from tests.planted import kind_of, write_planted
from tests.tiny import PLAN
from tests.tiny_llm import write_tiny_llm

NEW = ("b0", "s3", "t5")
NOW = micros(PLAN.finetune_end)


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    made = tmp_path_factory.mktemp("extend")
    write_planted(made / "before", leave_out=NEW)
    write_planted(made / "after")
    base = str(write_tiny_llm(made / "base"))
    llm = {
        "base": base,
        "layers": 3,
        "tuned_layers": 2,
        "prompt": {"context": 160},
        "training": {"epochs": 7, "rank": 8, "batch_tokens": 1024, "head_lr": 0.02},
    }
    reading_texts = {**llm, "texts": True, "training": {**llm["training"], "epochs": 1}}
    text = {"base": base, "layers": 2, "components": 4, "alike": True}
    for run, raw in {"llm": llm, "llm_texts": reading_texts, "text": text}.items():
        kind = run.partition("_")[0]
        assert finetune(made / "before", made / run, kind, predictor_class(kind).settings(raw))
        export(made / run)
        assert command("catalog", "extend", made / run, "--tables", made / "after", "--out", made / f"{run}2") == 0
        export(made / f"{run}2")
    return made


def priors(folder, run: str):
    """Priors at the cut-off, from events before it of the advertisers that were known."""
    predictor = load_predictor(folder / run)
    tables = load_tables(folder / "before", "users", "events")
    histories = build_histories(tables["users"], tables["events"], predictor.catalog).before(NOW)
    scorer = predictor.scorer(folder / run / "onnx", device="cpu", threads=1)
    found = scorer.score(histories, np.arange(60), np.asarray([NOW], np.int64))[:, 0]
    return predictor.catalog, histories, found


@pytest.mark.parametrize("kind", ["llm", "llm_texts", "text"])
def test_old_advertisers_keep_their_priors(folder, kind) -> None:
    before, _, first = priors(folder, kind)
    after, _, second = priors(folder, f"{kind}2")
    assert changes(before, after)["added"] == sorted(NEW)
    old = [after.index[a] for a in before.ids]
    # the same shares among themselves; the new ones take theirs from all
    np.testing.assert_allclose(log_softmax(second[:, old]), first, atol=2e-3)
    assert_distributions(second, 1)


@pytest.mark.parametrize("kind", ["llm", "text"])
def test_a_new_advertiser_is_placed_better_than_by_popularity(folder, kind) -> None:
    catalog, histories, found = priors(folder, f"{kind}2")
    terms = OffsetTerms((30.0,), (), monthly=False).everyone(histories, np.asarray([NOW], np.int64), len(catalog))
    popular = log_softmax(terms[0])[0]
    users = {a: [u for u in range(60) if list("tsb")[u % 3] == kind_of(a)] for a in NEW}
    ours = np.mean([found[users[a], catalog.index[a]].mean() for a in NEW])
    theirs = np.mean([popular[catalog.index[a]] for a in NEW])
    assert ours > theirs + 0.1
    # and for its own kind of users more than for others
    others = {a: [u for u in range(60) if u not in users[a]] for a in NEW}
    columns = {a: found[:, catalog.index[a]] for a in NEW}
    margins = [columns[a][users[a]].mean() - columns[a][others[a]].mean() for a in NEW]
    assert min(margins) > 0.05
    assert np.mean(margins) > 0.2


def test_the_manifest_tells(folder) -> None:
    facts = read_manifest(folder / "llm2")["facts"]
    assert facts["new_advertisers"] == sorted(NEW)
    assert facts["advertisers"] == 18
    assert facts["extended_from"] == Catalog.load(folder / "llm" / "catalog.json").version
    assert facts["catalog_version"] == read(folder / "after").version == read(folder / "llm2").version


def test_scores_and_is_reused(folder, tmp_path, capsys) -> None:
    again = ("catalog", "extend", folder / "llm", "--tables", folder / "after", "--out", folder / "llm2")
    assert command(*again) == 0
    assert "unchanged" in capsys.readouterr().out
    assert command("score", folder / "llm2", "--tables", folder / "after", "--out", tmp_path / "priors") == 0
    assert command("score", folder / "llm", "--tables", folder / "after", "--out", tmp_path / "old") == 2
    assert "PRI002" in capsys.readouterr().err


def test_refusals(folder, tmp_path, capsys) -> None:
    run, before, after, out = folder / "llm", folder / "before", folder / "after", tmp_path / "x"
    assert command("catalog", "extend", run, "--tables", before, "--out", out) == 2  # nothing is new
    assert "PRI065" in capsys.readouterr().err
    assert command("catalog", "extend", folder / "llm2", "--tables", before, "--out", out) == 2  # some are gone
    assert "3 removed" in capsys.readouterr().err
    settings = predictor_class("popularity").settings({})
    finetune(before, tmp_path / "p", "popularity", settings)
    assert command("catalog", "extend", tmp_path / "p", "--tables", after, "--out", out) == 2
    assert "PRI066" in capsys.readouterr().err
    assert command("catalog", "show", tmp_path) == 2
    assert "PRI067" in capsys.readouterr().err


def test_show_and_diff(folder, capsys) -> None:
    assert command("catalog", "show", folder / "after") == 0
    assert "18 advertisers, 15 with a text" in capsys.readouterr().out
    assert command("catalog", "diff", folder / "llm", folder / "after") == 0
    assert "3 added: b0, s3, t5" in capsys.readouterr().out
    assert command("catalog", "diff", folder / "llm2", folder / "after") == 0
    assert "the same" in capsys.readouterr().out
