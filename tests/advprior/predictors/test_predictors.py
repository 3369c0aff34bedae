"""What every predictor must hold: a distribution, strictly from the past, equal to the exported graph."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import torch

from advprior.history import counts
from advprior.history.catalog import Catalog
from advprior.history.histories import build_histories, micros
from advprior.pipeline.fit import finetune, read_settings
from advprior.predictors.encoding.encode import encode, saw_labels
from advprior.predictors.encoding.settings import Encoding
from advprior.predictors.llm.scorer import LLMScorer
from advprior.predictors.llm.tuning.model import AdvertiserModel
from advprior.predictors.offset import Offset, OffsetTerms
from advprior.predictors.registry import KINDS, load_predictor, predictor_class
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from advprior.store.tables import load_tables
from tests.advprior.conftest import Fitted, llm_settings
from tests.advprior.history.test_histories import histories_of
from tests.parity import assert_distributions, assert_other_log_probs, assert_same_log_probs
from tests.tiny import PLAN, write_tiny
from tests.tiny_llm import write_tiny_llm

SNAPSHOTS = np.asarray([micros(s) for s in PLAN.snapshots()], np.int64)


def histories(fitted: Fitted):
    loaded = load_tables(fitted.tables, "users", "advertisers", "events")
    return build_histories(loaded["users"], loaded["events"], Catalog.from_table(loaded["advertisers"]))


@pytest.mark.parametrize("kind", KINDS)
def test_priors_are_distributions_of_the_past_only(fitted: Fitted, kind: str) -> None:
    """The long forward's prior at a snapshot = the prior from the history cut at that snapshot."""
    whole = histories(fitted)
    scorer = load_predictor(fitted.model(kind)).scorer(fitted.model(kind) / "onnx", "cpu")
    users = np.arange(12, dtype=np.int64)
    priors = scorer.score(whole, users, SNAPSHOTS)
    assert priors.shape == (12, len(SNAPSHOTS), 12)
    assert_distributions(priors)
    for column in (0, 7, len(SNAPSHOTS) - 1):
        alone = scorer.score(whole.before(int(SNAPSHOTS[column])), users, SNAPSHOTS[column : column + 1])
        assert_same_log_probs(alone[:, 0], priors[:, column])
    # the test would not notice a predictor that ignores time
    assert_other_log_probs(priors[:, 0], priors[:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_at_the_snapshot_changes_nothing_and_one_before_does(fitted: Fitted, kind: str) -> None:
    whole = histories(fitted)
    scorer = load_predictor(fitted.model(kind)).scorer(fitted.model(kind) / "onnx", "cpu")
    moment = SNAPSHOTS[5:6]
    rows = [
        [(int(t), int(a)) for t, a in zip(whole.time[whole.rows(u)], whole.advertiser[whole.rows(u)], strict=True)]
        for u in range(len(whole))
    ]

    def prior(extra: list[tuple[int, int]]):
        return scorer.score(histories_of([rows[0] + extra, *rows[1:]]), np.asarray([0]), moment)

    assert_same_log_probs(prior([(int(moment[0]), 3)]), prior([]))
    assert_other_log_probs(prior([(int(moment[0]) - 1, 3)]), prior([]))


def test_batched_equals_one_by_one(fitted: Fitted) -> None:
    whole = histories(fitted)
    predictor = load_predictor(fitted.model("llm"))
    onnx = fitted.model("llm") / "onnx"
    habit = Offset.from_json(json.loads((predictor.run / "habit.json").read_text()))
    users = np.arange(20, dtype=np.int64)
    together, alone = (LLMScorer(predictor.encoder(), habit, onnx, "cpu") for _ in range(2))
    alone.token_budget = 1
    together, alone = (scorer.score(whole, users, SNAPSHOTS) for scorer in (together, alone))
    assert_same_log_probs(together, alone)


def test_llm_scores_as_the_torch_model(fitted: Fitted) -> None:
    whole = histories(fitted)
    predictor = load_predictor(fitted.model("llm"))
    model = AdvertiserModel.from_pretrained(predictor.run / "model").eval()
    encoder = predictor.encoder()
    habit = Offset.from_json(json.loads((predictor.run / "habit.json").read_text()))
    scored = predictor.scorer(predictor.run / "onnx", "cpu").score(whole, np.asarray([2]), SNAPSHOTS[-1:])
    prompt = encoder.prompt(whole.before(int(SNAPSHOTS[-1])), 2)
    (window,) = encoder.windows(prompt, np.asarray([len(prompt.ends)]))
    ids = torch.from_numpy(window.ids)[None]
    offset = torch.from_numpy(habit.logits(whole, np.asarray([2]), SNAPSHOTS[-1:], len(predictor.catalog)))[None]
    with torch.no_grad():
        expected = model(ids, torch.ones_like(ids), torch.from_numpy(window.positions)[None], offset)["log_probs"]
    assert_same_log_probs(scored[0], expected.numpy()[0])


def test_a_user_without_history_gets_a_prior(fitted: Fitted) -> None:
    empty = histories_of([[], [(micros(PLAN.start), 1)]])
    for kind in KINDS:
        scorer = load_predictor(fitted.model(kind)).scorer(fitted.model(kind) / "onnx", "cpu")
        prior = scorer.score(empty, np.asarray([0]), SNAPSHOTS[:1])
        assert_distributions(prior.ravel())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zero_shot"])  # which fits nothing
def test_nobody_has_a_say_on_users_without_a_history_that_was_not_validated_on_such(fitted: Fitted, kind: str) -> None:
    """No newcomer validates here, so a profile changes nothing: whatever position it is read at was never measured."""
    whole = histories(fitted)
    predictor = load_predictor(fitted.model(kind))
    facts = read_manifest(predictor.run)["facts"]
    scorer = predictor.scorer(predictor.run / "onnx", "cpu")
    cut = replace(whole, offsets=np.maximum(whole.offsets, whole.offsets[6]) - whole.offsets[6])
    cut = replace(cut, **{name: getattr(whole, name)[whole.offsets[6] :] for name in ("time", "advertiser")})
    cut = replace(cut, **{name: np.zeros(0, np.int32) for name in ("text", "category", "value")})
    assert len({*cut.profiles[:6]}) > 1
    priors = scorer.score(cut, np.arange(8), SNAPSHOTS[-1:])[:, 0]
    assert facts.get("no_history", {"points": 0})["points"] == 0
    for user in range(1, 6):
        assert_same_log_probs(priors[user], priors[0])
    if kind != "popularity":
        assert_other_log_probs(priors[6], priors[0])


def test_training_learns_beyond_habit(fitted: Fitted) -> None:
    facts = read_manifest(fitted.model("llm"))["facts"]
    assert [row["epoch"] for row in facts["curve"]] == [1, 2, 3]
    assert facts["curve"][-1]["train_nll"] < facts["curve"][0]["train_nll"]
    assert facts["model_cutoff"] == PLAN.finetune_end.isoformat()
    assert facts["points"]["train"] > 0 < facts["points"]["valid"]


def test_no_event_from_the_cutoff_on_reaches_a_fit(fitted: Fitted, tmp_path) -> None:
    """Fitting on tables whose later events are gone gives the very same predictor."""
    tables = tmp_path / "tables"
    write_tiny(tables)
    events = load_tables(tables, "events")["events"]
    events[events.timestamp < PLAN.finetune_end].to_parquet(tables / "events.parquet")
    for kind in ("popularity", "neighbours"):
        finetune(tables, tmp_path / kind, kind, predictor_class(kind).settings({}))
        assert (tmp_path / kind / "parameters.json").read_text() == (fitted.model(kind) / "parameters.json").read_text()
    settings = predictor_class("llm").settings(llm_settings(fitted.folder / "base", epochs=1))
    for name, source in (("cut", tables), ("whole", fitted.tables)):
        finetune(source, tmp_path / name, "llm", settings)
    cut, whole = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("cut", "whole"))
    assert cut == whole


def test_other_weights_in_the_same_folder_are_fitted_on_anew(fitted: Fitted, tmp_path) -> None:
    base = tmp_path / "base"
    shutil.copytree(fitted.folder / "base", base)
    settings = predictor_class("text").settings({"base": str(base), "layers": 2, "components": 2})
    assert finetune(fitted.tables, tmp_path / "text", "text", settings)
    assert not finetune(fitted.tables, tmp_path / "text", "text", settings)
    write_tiny_llm(base, seed=1)
    assert finetune(fitted.tables, tmp_path / "text", "text", settings)


def test_a_twin_has_forgotten_its_pretraining_and_nothing_else(fitted: Fitted, tmp_path) -> None:
    raw = llm_settings(fitted.folder / "base", epochs=1)
    for name, twin in (("one", True), ("two", True), ("llm", False)):
        finetune(fitted.tables, tmp_path / name, "llm", predictor_class("llm").settings({**raw, "twin": twin}))
    one, two, llm = (
        AdvertiserModel.from_pretrained(tmp_path / n / "model").state_dict() for n in ("one", "two", "llm")
    )
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in llm.items()}
    lower = "lower.layers.0.self_attn.q_proj.weight"
    assert torch.equal(one[lower], two[lower])  # random, and the same again
    assert abs(float(torch.corrcoef(torch.stack([one[lower].ravel(), llm[lower].ravel()]))[0, 1])) < 0.1
    twin, tuned = (load_predictor(tmp_path / name) for name in ("one", "llm"))
    assert not twin.uses_llm
    assert tuned.uses_llm


def test_old_targets_weigh_less_where_asked(fitted: Fitted) -> None:
    """Points' weights halve with age, and habit follows the recent ones."""
    from advprior.predictors.base import FitData
    from advprior.predictors.llm.tuning.points import fit_habit, training_points

    day = counts.DAY
    # two years: everybody repeats in the first, everybody changes each time in the second
    users = [[(d * day, (u if d < 365 else u + d // 20) % 8) for d in range(0, 730, 20)] for u in range(40)]
    catalog = Catalog(tuple(f"a{i}" for i in range(8)), tuple(f"name {i}" for i in range(8)))
    data = FitData(histories_of(users), catalog, 0, 735 * day, 7 * day)
    encoder = load_predictor(fitted.model("llm")).encoder()
    encoder = type(encoder)(encoder.style, lambda text: [1] * len(text), 300, catalog.names)
    found = {}
    for half_life in (None, 30.0):
        settings = predictor_class("llm").settings(
            {"horizon_days": 25, "training": {"recency_half_life_days": half_life, "valid_days": 60}}
        )
        points = training_points(data, encoder, settings)
        found[half_life] = fit_habit(data, points, settings).weights
        age = (data.cutoff - points[0].moments) / day
        expected = np.ones(len(age)) if half_life is None else 0.5 ** (age / half_life)
        np.testing.assert_allclose(points[0].weight, expected, rtol=1e-5)
    assert sum(found[30.0][1:]) < sum(found[None][1:])


def test_decayed_counts_equal_a_loop() -> None:
    day = counts.DAY
    histories = histories_of([[(0, 1), (10 * day, 1), (20 * day, 0)], [(5 * day, 2)]])
    cutoff = np.asarray([10 * day, 20 * day + 1], np.int64)
    own = counts.own_points(histories, np.asarray([0, 0]), cutoff, 10.0, 3)
    np.testing.assert_allclose(own, [[0, 0.5, 0], [1, 0.75, 0]], rtol=1e-5)
    np.testing.assert_allclose(counts.popularity(histories, cutoff, 10.0, 3)[0], [0, 0.5, 0.5**0.5], rtol=1e-9)


def test_popularity_in_one_pass_equals_each_cutoff_on_its_own() -> None:
    """The formula itself, cut-off by cut-off, over two years of events and cut-offs in no order."""
    rng = np.random.default_rng(0)
    users = [
        sorted(
            (int(t), int(a)) for t, a in zip(rng.integers(0, 730 * counts.DAY, 20), rng.integers(0, 6, 20), strict=True)
        )
        for _ in range(30)
    ]
    histories = histories_of(users)
    cutoffs = rng.permutation(np.concatenate([histories.time[::3], histories.time[::7] + 1, [0, 800 * counts.DAY]]))
    for half_life in (14.0, 365.0):
        expected = np.zeros((len(cutoffs), 7))
        for row, cutoff in enumerate(cutoffs):
            before = histories.time < cutoff
            weight = 0.5 ** ((cutoff - histories.time[before]) / (half_life * counts.DAY))
            np.add.at(expected[row], histories.advertiser[before], weight)
        np.testing.assert_allclose(counts.popularity(histories, cutoffs, half_life, 7), expected, rtol=1e-9)


def test_habit_is_as_of_the_cutoff() -> None:
    histories = histories_of([[(10, 0)], [(20, 1)]])
    terms = OffsetTerms((30.0,), (7.0,), monthly=False)(histories, np.asarray([0, 0]), np.asarray([10, 11]), 2)
    assert terms.shape == (2, 2, 2)
    assert terms[1, 0].tolist() == [0.0, 0.0]
    assert terms[1, 1, 0] > 0


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("layerz: 3", "CFG002", "layerz"),
        ("layers: many", "CFG002", "layers"),
        ("- 1", "CFG001", "list"),
        ("a: [", "CFG001", "config.yaml"),
        ("training: {epochs: 0}", "CFG002", "training.epochs"),
    ],
)
def test_bad_configs(tmp_path, text: str, code: str, part: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(AdvpriorError, match=part) as caught:
        read_settings("llm", tmp_path / "config.yaml")
    assert caught.value.code == code


def test_settings_changed_by_name(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("training: {epochs: 3, seed: 1}")
    changed = read_settings("hybrid", tmp_path / "config.yaml", ["encoder.twin=true", "training.epochs=2"])
    assert (changed.encoder.twin, changed.training.epochs, changed.training.seed) == (True, 2, 1)
    for wrong, code in (
        ("encoder.twin", "CFG001"),
        ("horizon_days.a=1", "CFG002"),
        ("encoder.twni=true", "CFG002"),
        ("a=[", "CFG001"),
    ):
        with pytest.raises(AdvpriorError) as caught:
            read_settings("hybrid", None, [wrong])
        assert caught.value.code == code


def test_the_last_advertiser_is_a_neighbour_prior_without_neighbours(tmp_path) -> None:
    tables = write_tiny(tmp_path / "tables")
    settings = read_settings("neighbours", None, ["similar=false", "half_lives_days=[2]"])
    finetune(tables, tmp_path / "last", "neighbours", settings)
    assert not np.load(tmp_path / "last" / "similarity.npy").any()
    other = read_settings("neighbours", None, ["half_lives_days=[2]"])
    finetune(tables, tmp_path / "near", "neighbours", other)
    assert np.load(tmp_path / "near" / "similarity.npy").any()


def test_the_same_department_is_a_term_where_advertisers_have_departments(tmp_path) -> None:
    """Users keep to their department and never go back to an advertiser: what neighbours cannot know, it tells."""
    rng, start = np.random.default_rng(0), PLAN.start
    rows = []
    for user in range(30):
        shelf = rng.choice(80, 14, replace=False) + 80 * (user % 2)
        rows += [(f"u{user:03d}", start + timedelta(days=5 * i + user % 5), f"a{a:03d}") for i, a in enumerate(shelf)]
    events = pd.DataFrame(rows, columns=["user_id", "timestamp", "advertiser_id"]).assign(value=1.0, category="Tea")
    tables = write_tiny(tmp_path / "tables")
    pd.DataFrame({"user_id": [f"u{i:03d}" for i in range(30)]}).to_parquet(tables / "users.parquet")
    events.to_parquet(tables / "events.parquet")
    ids = [f"a{i:03d}" for i in range(160)]
    plain = pd.DataFrame({"advertiser_id": ids, "name": ids})
    weights, nll = {}, {}
    for name, catalog in {"plain": plain, "placed": plain.assign(department=["Food"] * 80 + ["Drugs"] * 80)}.items():
        catalog.to_parquet(tables / "advertisers.parquet")
        finetune(tables, tmp_path / name, "neighbours", read_settings("neighbours", None))
        predictor = load_predictor(tmp_path / name)
        (tmp_path / name / "onnx").mkdir()
        predictor.export(tmp_path / name / "onnx")  # refuses a graph that says something else
        weights[name] = predictor.parameters["weights"]
        nll[name] = read_manifest(tmp_path / name)["facts"]["valid"]["model"]["nll"]
        assert any("departments" in words for words in predictor.reads) == (name == "placed")
    assert len(weights["placed"]) == len(weights["plain"]) + 1
    assert weights["placed"][-1] > 0.1
    assert nll["placed"] < nll["plain"] - 0.05


def test_too_little_history_is_said(tmp_path) -> None:
    tables = write_tiny(tmp_path / "tables")
    events = load_tables(tables, "events")["events"]
    events[events.timestamp > PLAN.finetune_end + timedelta(days=1)].to_parquet(tables / "events.parquet")
    for kind in KINDS:
        with pytest.raises(AdvpriorError) as caught:
            finetune(tables, tmp_path / kind, kind, predictor_class(kind).settings({}))
        assert caught.value.code == "PRI006"
        assert list(tmp_path.glob(f"*{kind}*")) == []


def test_the_template_says_the_defaults() -> None:
    from importlib.resources import files

    for kind in ("llm", "hybrid", "text"):
        template = files("advprior").joinpath(f"templates/{kind}.yaml")
        assert read_settings(kind, template) == predictor_class(kind).settings({})


def test_a_fitted_llm_reads_as_its_base_but_for_what_it_learnt(fitted: Fitted) -> None:
    """A few passes move the upper layers a little: encodings are near the base's and not the same."""
    texts = ("green tea", "a bakery in the north, since 1908", "")
    run, base = fitted.model("llm"), str(fitted.folder / "base")
    ours, facts = encode(texts, Encoding(base=str(run), pooling="skip_first"))
    plain, _ = encode(texts, Encoding(base=base, pooling="skip_first", layers=3))
    assert facts["encoder"] == "language model fitted on histories"
    difference = np.abs(ours - plain).max() / np.abs(plain).max()
    assert 1e-5 < difference < 0.5
    with pytest.raises(AdvpriorError) as early:
        encode(texts, Encoding(base=str(run)), cutoff=0)
    assert early.value.code == "PRI040"
    for wrong in (Encoding(base=str(fitted.model("text"))), Encoding(base=str(run), layers=2)):
        with pytest.raises(AdvpriorError) as refused:
            encode(texts, wrong)
        assert refused.value.code == "PRI083"


def test_a_quality_on_labels_that_the_encoder_learned_from_is_called_so(fitted: Fitted, tmp_path) -> None:
    run = str(fitted.model("llm"))
    settings = predictor_class("text").settings({"base": run, "components": 4, "points": 100})
    finetune(fitted.folder / "tables", tmp_path / "text", "text", settings)
    valid = read_manifest(tmp_path / "text")["facts"]["valid"]
    assert valid["fitted_on_these_labels"]
    assert "fitted_on_these_labels" not in read_manifest(fitted.model("text"))["facts"]["valid"]
    until = micros(datetime.fromisoformat(read_manifest(fitted.model("llm"))["facts"]["model_cutoff"]))
    assert [saw_labels(Encoding(base=run), since) for since in (until - 1, until)] == [True, False]
    assert not saw_labels(Encoding(base=run, twin=True), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_predictor_reads_what_it_says_it_reads(fitted: Fitted, kind: str, tmp_path) -> None:
    """Another profile, other categories or amounts change a prior where the predictor says that it reads them."""
    whole, run = histories(fitted), shutil.copytree(fitted.model(kind), tmp_path / kind)
    if (run / "network.pt").is_file():  # of one pass: it may have no say beside the offset
        state = torch.load(run / "network.pt", weights_only=True)
        torch.save({**state, "strength": torch.full_like(state["strength"], 1e6)}, run / "network.pt")
        load_predictor(run).export(run / "onnx")
    predictor = load_predictor(run)
    scorer = predictor.scorer(run / "onnx", "cpu")
    users, moment = np.arange(8, dtype=np.int64), SNAPSHOTS[-1:]
    before = scorer.score(whole, users, moment)
    others = np.roll(np.arange(len(whole)), 1)
    profiles = {"profiles": tuple(whole.profiles[u] for u in others), "profile_codes": whole.profile_codes[others]}
    changes = {
        "profile": replace(whole, **profiles),
        "category": replace(whole, category=(whole.category + 1) % len(whole.categories)),
        "value": replace(whole, value=whole.value * 8 + 3),
    }
    words = "; ".join(predictor.reads)
    assert predictor.reads_profile == ("profile" in words)
    for what, changed in changes.items():
        says = what in words
        (assert_other_log_probs if says else assert_same_log_probs)(scorer.score(changed, users, moment), before)
