"""Advertisers withheld from fitting: nothing of them leaks, and their texts place them where their buyers are."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from advprior.cli import main
from advprior.evaluation import sentences
from advprior.evaluation.cold import evaluate_cold
from advprior.evaluation.compare import Bootstrap, compare
from advprior.evaluation.options import Options
from advprior.evaluation.protocol import Labels, first_labels
from advprior.history.catalog import Catalog
from advprior.history.histories import build_histories, micros
from advprior.history.withheld import choose_withheld, draw
from advprior.pipeline.fit import finetune
from advprior.predictors.registry import load_predictor, predictor_class
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from tests.advprior.conftest import export
from tests.planted import kind_of, write_planted
from tests.tiny import PLAN
from tests.tiny_llm import write_tiny_llm

WITHHELD = ("b1", "s1", "t1")
CUTOFF = PLAN.finetune_end


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    made = tmp_path_factory.mktemp("cold")
    write_planted(made / "tables")
    base = {"base": str(write_tiny_llm(made / "base")), "layers": 2, "components": 4}
    runs: dict[str, dict] = {
        "text": {},
        "boosted": {"new_boost": 2.0},
        "alone": {"known": False},
        "alike": {"alike": True, "new_boost": "spread", "new_places": 2},
    }
    for name, more in runs.items():
        settings = predictor_class("text").settings({**base, **more})
        assert finetune(made / "tables", made / name, "text", settings, withheld=WITHHELD)
        export(made / name)
    popularity = predictor_class("popularity").settings({})
    finetune(made / "tables", made / "popular", "popularity", popularity, withheld=WITHHELD)
    export(made / "popular")
    return made


def priors(folder, run: str):
    predictor = load_predictor(folder / run)
    tables = load_tables(folder / "tables", "users", "events")
    keep = ~tables["events"].advertiser_id.isin(WITHHELD)
    histories = build_histories(tables["users"], tables["events"][keep], predictor.catalog)
    scorer = predictor.scorer(folder / run / "onnx", device="cpu", threads=1)
    return predictor.catalog, scorer.score(histories, np.arange(60), np.asarray([micros(CUTOFF)], np.int64))[:, 0]


@pytest.mark.parametrize("run", ["text", "boosted", "alone", "alike"])
def test_a_withheld_advertiser_stands_with_its_kind(folder, run) -> None:
    catalog, found = priors(folder, run)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-4)
    columns = [catalog.index[a] for a in WITHHELD]
    right = np.asarray([kind_of(WITHHELD[j]) for j in found[:, columns].argmax(1)])
    wanted = np.asarray([list("tsb")[user % 3] for user in range(60)])
    assert (right == wanted).mean() > 0.9


def test_what_is_new_costs_what_the_boost_says(folder) -> None:
    catalog, plain = priors(folder, "text")
    _, boosted = priors(folder, "boosted")
    new = np.isin(catalog.ids, WITHHELD)
    shift = (boosted - plain)[0]
    assert shift[new] - shift[~new].mean() == pytest.approx(2.0, rel=1e-3)


def test_new_advertisers_have_the_places_that_are_kept_for_them(folder) -> None:
    catalog, priors_of = priors(folder, "alike")
    first = np.argsort(-priors_of, axis=1)[:, :5]
    assert (np.isin(np.asarray(catalog.ids)[first], WITHHELD).sum(1) >= 2).all()


def test_a_run_of_a_version_without_places_is_read(folder, tmp_path) -> None:
    shutil.copytree(folder / "text", tmp_path / "text")
    path = tmp_path / "text" / "parameters.json"
    saved = json.loads(path.read_text())
    del saved["settings"]["new_places"]
    path.write_text(json.dumps(saved))
    shutil.copytree(folder / "tables", tmp_path / "tables")
    np.testing.assert_array_equal(priors(tmp_path, "text")[1], priors(folder, "text")[1])


def test_recall_beats_popularity_and_its_interval_says_so(folder) -> None:
    runs = [folder / "boosted", folder / "alone", folder / "popular"]
    result = evaluate_cold(
        runs, folder / "tables", CUTOFF, Options(horizon=timedelta(days=28), replicates=200, device="cpu")
    )
    by = {(r["arm"], r["segment"]): r for r in result["segments"]}
    assert by["popularity", "withheld"]["recall@5"] == 0
    assert by["popular", "withheld"]["recall@5"] == 0
    assert by["boosted", "withheld"]["recall@5"] > 0.5
    assert result["about"]["withheld"] == list(WITHHELD)
    assert 0 < result["about"]["withheld_labels"] < result["about"]["labels"]
    young = result["about"]["young_labels"]  # every advertiser of these tables has more events, or none
    assert (young, by["boosted", "young"]["users"]) == (0, 0)
    # the nearest texts by a run's own encoder: of each run that reads texts, against itself alone
    neighbours = {arm for arm, _ in by if arm.endswith(": neighbours")}
    assert neighbours == {"boosted: neighbours", "alone: neighbours"}
    assert by["boosted: neighbours", "overall"] | {"arm": ""} == by["alone: neighbours", "overall"] | {"arm": ""}
    against = {(c["arm"], c["baseline"]) for c in result["comparisons"] if c["baseline"] in neighbours}
    assert against == {("boosted", "boosted: neighbours"), ("alone", "alone: neighbours")}
    assert (sentences.NAME in result["about"]["left_out"]) != sentences.installed()
    (row,) = (
        c
        for c in result["comparisons"]
        if (c["arm"], c["baseline"], c["metric"], c["segment"]) == ("boosted", "popularity", "recall@5", "withheld")
    )
    assert row["low"] > 0
    assert row["by_advertiser"]["low"] <= row["difference"] <= row["by_advertiser"]["high"]


def test_an_interval_by_advertisers_knows_that_they_are_few() -> None:
    """An arm that helps three advertisers of five and harms two: sure for these users, unsure for other advertisers."""
    rng = np.random.default_rng(0)
    users, size = 400, 5
    labels = Labels(np.arange(users), np.arange(users + 1), rng.integers(size, size=users))
    flat = np.full((users, size), -np.log(size), np.float32)
    shifted = flat + np.where(np.arange(size) < 3, 0.5, -0.4).astype(np.float32)
    arms, inside = {"arm": [shifted], "flat": [flat]}, {"overall": np.ones(users, np.bool_)}

    def nll(unit: Any = None) -> dict[str, Any]:
        rows = compare(arms, labels, inside, [("arm", "flat", "flat")], Bootstrap(400, 0, unit))[1]
        return next(row for row in rows if row["metric"] == "nll")

    by_user, by_advertiser = nll(), nll(labels.advertiser)
    assert by_user["difference"] == pytest.approx(by_advertiser["difference"], rel=1e-9)
    assert by_user["high"] < 0 < by_advertiser["high"]


def test_young_advertisers_have_some_events_but_few(folder, tmp_path) -> None:
    tables = load_tables(folder / "tables", "events")["events"]
    shutil.copytree(folder / "tables", tmp_path / "tables")
    before = (tables.advertiser_id == "t0") & (tables.timestamp < pd.Timestamp(CUTOFF))
    tables.drop(tables.index[before][10:]).to_parquet(tmp_path / "tables" / "events.parquet")
    popularity = predictor_class("popularity").settings({})
    finetune(tmp_path / "tables", tmp_path / "p", "popularity", popularity, withheld=("s1",))
    export(tmp_path / "p")
    options = Options(horizon=timedelta(days=28), replicates=20, device="cpu")
    result = evaluate_cold([tmp_path / "p"], tmp_path / "tables", CUTOFF, options)
    catalog, loaded = Catalog.load(tmp_path / "p" / "catalog.json"), load_tables(tmp_path / "tables", "users", "events")
    histories = build_histories(loaded["users"], loaded["events"], catalog)
    labels = first_labels(histories, micros(CUTOFF), options.horizon_micros)
    expected = int((labels.advertiser == catalog.index["t0"]).sum())
    assert 0 < expected == result["about"]["young_labels"]


def test_nothing_of_a_withheld_advertiser_is_fitted(folder, tmp_path) -> None:
    """The same fit from tables that never had the events gives the same weights."""
    tables = load_tables(folder / "tables", "events")["events"]
    shutil.copytree(folder / "tables", tmp_path / "tables")
    tables[~tables.advertiser_id.isin(WITHHELD)].to_parquet(tmp_path / "tables" / "events.parquet")
    settings = predictor_class("text").settings(
        json.loads((folder / "text" / "parameters.json").read_text())["settings"]
    )
    finetune(tmp_path / "tables", tmp_path / "run", "text", settings)
    ours, theirs = (json.loads((f / "parameters.json").read_text()) for f in (folder / "text", tmp_path / "run"))
    assert ours["weights"] == theirs["weights"]
    manifest = read_manifest(folder / "text")
    assert manifest["config"]["withheld"] == list(WITHHELD)
    assert manifest["facts"]["advertisers"] == 18
    assert Catalog.load(folder / "text" / "catalog.json").index["t1"] >= 0


def test_runs_must_have_withheld_the_same(folder, tmp_path) -> None:
    finetune(folder / "tables", tmp_path / "all", "popularity", predictor_class("popularity").settings({}))
    export(tmp_path / "all")
    for runs in ([tmp_path / "all"], [folder / "text", tmp_path / "all"]):
        with pytest.raises(AdvpriorError, match="PRI061"):
            evaluate_cold(runs, folder / "tables", CUTOFF, Options(horizon=timedelta(days=28), device="cpu"))


def test_who_is_withheld(folder, tmp_path) -> None:
    tables = folder / "tables"
    assert choose_withheld(tables, "0.2", 1) == choose_withheld(tables, "0.2", 1) != choose_withheld(tables, "0.2", 2)
    assert len(draw([str(i) for i in range(141)], 0.2, 0)) == 28
    (tmp_path / "ids").write_text("t1\n\nb2\n")
    assert choose_withheld(tables, str(tmp_path / "ids"), 0) == ("b2", "t1")
    (tmp_path / "ids").write_text("t1\nnobody\n")
    for wrong in ("1.5", "0", str(tmp_path / "ids"), str(tmp_path / "none")):
        with pytest.raises(AdvpriorError, match="PRI060"):
            choose_withheld(tables, wrong, 0)


def test_the_commands(folder, tmp_path, capsys) -> None:
    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        assert not left.value.code
        return capsys.readouterr().out

    tables = folder / "tables"
    run("finetune", "--predictor", "popularity", "--tables", tables, "--out", tmp_path / "p", "--withhold", "0.2")
    run("export", tmp_path / "p")
    out = run(
        "cold",
        tmp_path / "p",
        "--tables",
        tables,
        "--cutoff",
        CUTOFF.date(),
        "--horizon",
        "28d",
        "--threads",
        1,
        "--replicates",
        20,
        "--out",
        tmp_path / "cold.json",
    )
    assert "4 of 18 advertisers withheld" in out
    assert "p - popularity: +0.0000 [+0.0000, +0.0000], by advertisers [+0.0000, +0.0000]; nll " in out
    assert json.loads((tmp_path / "cold.json").read_text())["about"]["step"] == "cold"


@pytest.mark.skipif(not sentences.installed(), reason="needs the extra `evaluate`")
def test_sentence_vectors_know_what_is_alike() -> None:
    tea, leaf, soap = sentences.sentence_vectors(["green tea leaves", "black tea", "hand soap"])
    assert tea @ leaf > tea @ soap
    assert float(tea @ tea) == pytest.approx(1, rel=1e-3)


def test_a_twin_has_other_encodings_and_is_no_llm(folder) -> None:
    base = {"base": str(folder / "base"), "layers": 2, "components": 4, "twin": True}
    assert finetune(folder / "tables", folder / "twin", "text", predictor_class("text").settings(base))
    own, twin = (np.load(folder / run / "encodings.npy") for run in ("text", "twin"))
    assert own.shape == twin.shape
    assert not np.allclose(own, twin, equal_nan=True)
    assert (load_predictor(folder / "text").uses_llm, load_predictor(folder / "twin").uses_llm) == (True, False)
