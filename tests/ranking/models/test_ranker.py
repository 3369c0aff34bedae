"""The ranker learns what is there, repeats itself, and says on loading what is wrong."""

import json

import numpy as np
import pandas as pd
import pytest

from advprior.store.errors import AdvpriorError
from ranking.evidence.metrics import Auc, Ece, Ndcg, Rows
from ranking.models.arms import load_arms
from ranking.models.config import RankerConfig
from ranking.models.encoder import Encoder
from ranking.models.ranker import Examples, Ranker, importance_by_group, prepare
from tests.ranking.frames import features_of, synthetic_frame

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
