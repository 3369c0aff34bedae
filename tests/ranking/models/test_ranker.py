"""The ranker learns what is there, repeats itself, and says on loading what is wrong."""

import json

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from advprior.store.errors import AdvpriorError
from ranking.evidence.metrics import Auc, Ece, Ndcg, Rows
from ranking.frame import row_blocks
from ranking.frame.row_blocks import InMemory, InParquet
from ranking.models import encoded
from ranking.models.arms import load_arms
from ranking.models.config import RankerConfig
from ranking.models.encoder import Encoder
from ranking.models.ranker import Examples, Ranker, importance_by_group, prepare
from ranking.service.predictor import Predictor
from tests.ranking.frames import features_of, synthetic_frame, write_frame

CONFIG = RankerConfig(max_rounds=80, patience=10, num_leaves=15, learning_rate=0.1, threads=1)


@pytest.fixture(scope="module")
def frame():
    return synthetic_frame()


@pytest.fixture(scope="module")
def parts(frame):
    return [frame[frame["split"] == name] for name in ("train", "valid", "test")]


def features(frame, prior="llm"):
    return [feature for feature in features_of(frame) if feature.predictor in (None, prior)]


@pytest.fixture(scope="module")
def ranker(frame, parts):
    return Ranker("ranker_with_priors_v1", features(frame), CONFIG, seed=3).fit(parts[0], parts[1])


def test_it_learns_and_its_probabilities_are_calibrated(ranker, parts):
    rows = Rows.of(parts[2]["label"], ranker.predict(parts[2]))
    assert Auc()(rows) > 0.75
    assert Ece()(rows) < 0.04
    shares = ranker.importance()
    assert sum(shares.values()) == pytest.approx(1)
    assert importance_by_group(shares, ranker.features)["prior_llm"] > 0.2


def test_same_seed_same_scores_other_seed_other_scores(ranker, frame, parts):
    again = Ranker("ranker_with_priors_v1", features(frame), CONFIG, seed=3).fit(parts[0], parts[1])
    assert (again.predict(parts[2]) == ranker.predict(parts[2])).all()
    other = Ranker("ranker_with_priors_v1", features(frame), CONFIG, seed=4).fit(parts[0], parts[1])
    assert (other.predict(parts[2]) != ranker.predict(parts[2])).any()


def test_saved_and_loaded_it_gives_the_same_scores(ranker, parts, tmp_path):
    ranker.facts = {"time_plan": {"start": "2024-01-01"}}
    ranker.save(tmp_path / "r")
    loaded = Ranker.load(tmp_path / "r")
    assert loaded.predict(parts[2]) == pytest.approx(ranker.predict(parts[2]), abs=1e-12)
    assert (loaded.service, loaded.features, loaded.facts, loaded.seed) == (
        ranker.service,
        ranker.features,
        ranker.facts,
        3,
    )


def test_isotonic_calibration_survives_saving_too(frame, parts, tmp_path):
    config = CONFIG.model_copy(update={"calibration": "isotonic"})
    ranker = Ranker("s", features(frame), config).fit(parts[0], parts[1])
    ranker.save(tmp_path / "r")
    assert Ranker.load(tmp_path / "r").predict(parts[2]) == pytest.approx(ranker.predict(parts[2]), abs=1e-12)
    assert Ece()(Rows.of(parts[2]["label"], ranker.predict(parts[2]))) < 0.04


def test_platt_keeps_the_order(ranker, parts):
    matrix = ranker.encoder.encode(parts[2])
    raw, calibrated = ranker.raw(matrix), ranker.predict_matrix(matrix)
    assert (np.argsort(raw, kind="stable") == np.argsort(calibrated, kind="stable")).all()


def test_text_is_encoded_alike_as_category_or_string_and_the_unknown_is_missing():
    fitted = Encoder.fit(pd.DataFrame({"profile_a": ["y", "x", None]}), ["profile_a"])
    as_text = pd.DataFrame({"profile_a": ["x", "new", None, "y"]})
    as_category = as_text.astype({"profile_a": pd.CategoricalDtype(["new", "y", "x"])})
    expected = [0, np.nan, np.nan, 1]
    np.testing.assert_array_equal(fitted.encode(as_text)[:, 0], expected)
    np.testing.assert_array_equal(fitted.encode(as_category)[:, 0], expected)


def test_category_codes_of_another_frame_do_not_shift_scores(ranker, parts):
    shuffled = parts[2].copy()
    shuffled["ad_category"] = shuffled["ad_category"].cat.set_categories(list("ZFEDCBA"))
    assert (ranker.predict(shuffled) == ranker.predict(parts[2])).all()


def test_a_missing_feature_is_named(ranker, parts):
    with pytest.raises(AdvpriorError, match=r"RNK023(.|\n)*prior_llm_rank"):
        ranker.predict(parts[2].drop(columns="prior_llm_rank"))


def test_a_split_without_positives_is_refused(frame, parts):
    empty = parts[1].assign(label=np.int8(0))
    with pytest.raises(AdvpriorError, match=r"RNK024(.|\n)*valid(.|\n)*0 positives"):
        Ranker("s", features(frame), CONFIG).fit(parts[0], empty)


def test_what_is_no_ranker_is_refused(ranker, tmp_path):
    with pytest.raises(AdvpriorError, match="RNK025"):
        Ranker.load(tmp_path)
    ranker.save(tmp_path)
    (tmp_path / "model.txt").write_text((tmp_path / "model.txt").read_text()[:2000])
    with pytest.raises(AdvpriorError, match="RNK025"):
        Ranker.load(tmp_path)
    ranker.save(tmp_path)
    about = json.loads((tmp_path / "ranker.json").read_text())
    (tmp_path / "ranker.json").write_text(json.dumps({**about, "features": about["features"][1:]}))
    with pytest.raises(AdvpriorError, match=r"RNK025(.|\n)*features"):
        Ranker.load(tmp_path)
    old = {**about, "format": 1, "features": [feature["name"] for feature in about["features"]]}
    (tmp_path / "ranker.json").write_text(json.dumps(old))
    with pytest.raises(AdvpriorError, match=r"RNK025(.|\n)*train it again"):
        Ranker.load(tmp_path)


def test_the_packaged_settings_are_the_defaults():
    assert load_arms().ranker == RankerConfig()


def test_lambdarank_orders_slates_better_than_chance_and_is_calibrated(frame, parts):
    config = CONFIG.model_copy(update={"objective": "lambdarank"})
    shuffled = parts[0].sample(frac=1, random_state=0)  # a slate's rows need not stand together in a frame
    ranker = Ranker("ranker_with_priors_v1", features(frame), config).fit(shuffled, parts[1])
    score = ranker.predict(parts[2])
    rows = Rows.of(parts[2]["label"], score, slate=parts[2]["slate_id"])
    blind = Rows.of(parts[2]["label"], np.zeros(len(score)), slate=parts[2]["slate_id"])
    assert Ndcg(10)(rows) > Ndcg(10)(blind) + 0.15
    assert Ece()(rows) < 0.05
    again = Ranker("ranker_with_priors_v1", features(frame), config).fit(parts[0], parts[1])
    assert Ndcg(10)(Rows.of(parts[2]["label"], again.predict(parts[2]), slate=parts[2]["slate_id"])) > Ndcg(10)(blind)


def test_validation_scores_stand_in_the_order_of_the_rows(frame, parts):
    config = CONFIG.model_copy(update={"objective": "lambdarank", "max_rounds": 10})
    shuffled = parts[1].sample(frac=1, random_state=1)
    ranker = Ranker("ranker_with_priors_v1", features(frame), config).fit(parts[0], shuffled)
    np.testing.assert_array_equal(ranker.valid_scores, ranker.predict(shuffled))


def test_a_slate_that_lambdarank_cannot_take_is_named(frame, parts):
    config = CONFIG.model_copy(update={"objective": "lambdarank", "max_rounds": 2})
    long = pd.concat([parts[0]] * (10_001 // len(parts[0]) + 1)).assign(slate_id=7)
    with pytest.raises(AdvpriorError, match=r"RNK037(.|\n)*slate_id 7"):
        Ranker("s", features(frame), config).fit(long, parts[1])


def test_a_monotone_score_never_falls_with_the_prior(frame, parts, tmp_path):
    steps = np.linspace(-4, 4, 30).astype(np.float32)

    def scores(monotone):
        config = CONFIG.model_copy(update={"monotone": monotone, "num_leaves": 63, "min_data_in_leaf": 20})
        ranker = Ranker("ranker_with_priors_v1", features(frame), config).fit(parts[0], parts[1])
        ranker.save(tmp_path / str(monotone))
        assert Ranker.load(tmp_path / str(monotone)).config.monotone is monotone
        rows = pd.concat([parts[2].head(40)] * len(steps))
        rows["prior_llm_log_prob"] = np.repeat(steps, 40)
        return ranker.predict(rows).reshape(len(steps), 40)

    assert (np.diff(scores(True), axis=0) >= 0).all()
    assert (np.diff(scores(False), axis=0) < 0).any()  # else the bound would show nothing


def test_rare_positives_are_learned_from_fewer_negatives_that_weigh_more(frame, parts):
    train, valid, test = parts
    rng = np.random.default_rng(0)
    train = train[(train["label"] == 0) | (rng.random(len(train)) < 0.3)]
    positives = int(train["label"].sum())
    few = CONFIG.model_copy(update={"negatives_per_positive": 4})
    encoder = Encoder.fit(train, [feature.name for feature in features(frame)])
    learned, held = (Examples(encoder.encode(part), part["label"].to_numpy(np.int8)) for part in (train, valid))
    data = prepare(encoder, learned, held, few).train
    assert data.num_data() == 5 * positives < len(train) / 2
    assert data.get_weight().sum() == pytest.approx(len(train), rel=1e-5)  # the level of probabilities stays
    scores = {}
    for name, config in (("few", few), ("all", CONFIG.model_copy(update={"negatives_per_positive": None}))):
        scores[name] = Rows.of(test["label"], Ranker("r", features(frame), config).fit(train, valid).predict(test))
    assert Auc()(scores["few"]) == pytest.approx(Auc()(scores["all"]), abs=0.02)
    assert Ece()(scores["few"]) < 0.05


def test_some_negatives_are_learned_from_and_what_is_said_is_of_all_rows(frame, parts, tmp_path):
    """A tenth of the negatives: the correction alone sets the level, calibration has next to nothing left to do."""
    train, valid, test = parts
    rng = np.random.default_rng(0)
    train, valid, test = (part[(part["label"] == 0) | (rng.random(len(part)) < 0.3)] for part in (train, valid, test))
    tenth = CONFIG.changed(negatives=0.1, min_data_in_leaf=20, max_rounds=40)
    ranker = Ranker("ranker_with_priors_v1", features(frame), tenth).fit(train, valid)
    assert ranker.correction == pytest.approx(np.log(0.1), rel=1e-3)
    matrix = ranker.encoder.encode(test)
    rate, corrected = test["label"].mean(), 1 / (1 + np.exp(-ranker.raw(matrix)))
    assert corrected.mean() == pytest.approx(rate, rel=0.15)
    assert (1 / (1 + np.exp(-ranker.trees(matrix, 1)))).mean() > 3 * rate  # as it learned, of the rows drawn
    assert ranker.calibration["offset"] == pytest.approx(0, abs=1.0)
    assert ranker.predict(valid).mean() == pytest.approx(valid["label"].mean(), rel=0.02)
    everything = Ranker("r", features(frame), CONFIG.model_copy(update={"negatives_per_positive": None}))
    auc = [Auc()(Rows.of(test["label"], one.predict(test))) for one in (ranker, everything.fit(train, valid))]
    assert auc[0] == pytest.approx(auc[1], abs=0.03)
    # the validation rows that stop a fit are all of them, at their own level
    losses = ranker.booster.best_score["valid_0"]["binary_logloss"]
    held = ranker.raw(ranker.encoder.encode(valid))
    assert losses == pytest.approx(np.mean(np.logaddexp(0, np.where(valid["label"] == 1, -held, held))), rel=1e-5)

    ranker.save(tmp_path)
    served = Predictor(Ranker.load(tmp_path), tmp_path)
    np.testing.assert_allclose(served.scores(matrix), ranker.predict(test), rtol=1e-6)
    np.testing.assert_allclose(served.contributions(matrix).sum(1), ranker.raw(matrix), rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "ranker.json").read_text())["format"] == 4  # who knows no correction must not read it


def test_a_start_carries_the_level_of_negatives_left_out(frame, parts):
    config = CONFIG.changed(negatives=0.2, start_from="prior_llm_log_prob")
    ranker = Ranker("ranker_with_priors_v1", features(frame), config).fit(parts[0], parts[1])
    assert ranker.correction == 0.0
    level = 1 / (1 + np.exp(-ranker.raw(ranker.encoder.encode(parts[1]))))
    assert level.mean() == pytest.approx(parts[1]["label"].mean(), rel=0.15)


def test_negatives_are_left_out_in_one_way():
    assert RankerConfig(negatives=0.1).negatives_per_positive is None
    assert RankerConfig(**RankerConfig(negatives=0.1).model_dump()).negatives == 0.1
    with pytest.raises(ValidationError, match="two ways"):
        RankerConfig(negatives=0.1, negatives_per_positive=15)
    with pytest.raises(ValidationError):
        RankerConfig(negatives=0.0)


@pytest.mark.parametrize("negatives", [None, 0.5])
def test_rows_that_are_read_block_by_block_give_the_same_ranker(frame, parts, tmp_path, monkeypatch, negatives):
    """To the bit: from one file of an earlier format, and from parts; bins, trees, calibration and scores."""
    rows = frame.sort_values("timestamp", ignore_index=True)
    monkeypatch.setattr(row_blocks, "BLOCK", 1000)
    one, many = write_frame(tmp_path / "one", rows), write_frame(tmp_path / "many", rows)
    (many / "frame.parquet").unlink()
    (many / "frame.parquet").mkdir()
    for number, start in enumerate(range(0, len(rows), 5000)):
        part = rows.iloc[start : start + 5000]
        part.to_parquet(many / "frame.parquet" / f"part-{number:05d}.parquet", row_group_size=1500, index=False)
    config = CONFIG.model_copy(update={"negatives_per_positive": None, "negatives": negatives, "max_rounds": 10})
    names, scores, models = [feature.name for feature in features(frame)], [], []
    for source, whole in ((InMemory(rows), 10**9), (InMemory(rows), 0), (InParquet(one), 0), (InParquet(many), 0)):
        monkeypatch.setattr(encoded, "WHOLE", whole)
        at = {name: np.flatnonzero(rows["split"] == name) for name in ("train", "valid", "test")}
        encoder = Encoder.fit(rows.iloc[at["train"]], names)
        split = {name: encoded.EncodedRows(source, encoder, places) for name, places in at.items()}
        learned, held = (Examples(split[name], rows["label"].to_numpy()[at[name]]) for name in ("train", "valid"))
        ranker = Ranker("s", features(frame), config).fit_prepared(prepare(encoder, learned, held, config))
        models.append(ranker.booster.model_to_string())
        scores.append(ranker.predict_matrix(split["test"]))
    assert models[0] == models[1] == models[2] == models[3]
    for other in scores[1:]:
        np.testing.assert_array_equal(other, scores[0])
