"""LightGBM's parameters are open; those that the measurement decides are refused under every name that LightGBM has."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from advprior.store.errors import AdvpriorError
from ranking.models.arms import load_arms
from ranking.models.config import RankerConfig
from ranking.models.params import OWNED, canonical_names, checked_params
from ranking.models.ranker import Ranker
from ranking.service.predictor import Predictor
from tests.ranking.frames import features_of, synthetic_frame


def refused(**settings):
    with pytest.raises(AdvpriorError) as caught:
        load_arms().with_ranker(**settings)
    assert caught.value.code == "CFG001"
    return str(caught.value.actual)


def test_any_other_parameter_is_taken_beside_the_settings_or_under_params():
    beside = load_arms().with_ranker(reg_alpha=1.0, max_depth=6, num_leaves=15).ranker
    under = load_arms().with_ranker(params={"lambda_l1": 1.0, "max_depth": 6}, num_leaves=15).ranker
    assert beside == under
    assert beside.params == {"lambda_l1": 1.0, "max_depth": 6}


def test_every_owned_parameter_exists_and_is_refused_under_all_of_its_names_with_what_controls_it():
    names = canonical_names()
    assert set(OWNED) <= set(names.values())
    owned = {name: canonical for name, canonical in names.items() if canonical in OWNED}
    with pytest.raises(ValueError, match="n_estimators") as caught:
        checked_params(dict.fromkeys(owned, 1), RankerConfig.model_fields)
    problems = str(caught.value).split("; ")
    assert problems == [f"{name}: {OWNED[canonical]}" for name, canonical in owned.items()]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_estimators": 500}, "n_estimators: set `max_rounds`"),
        ({"eta": 0.1}, "eta: set `learning_rate` of the ranker itself"),
        ({"min_child_samples": 5}, "set `min_data_in_leaf`"),
        ({"random_state": 5}, "--seeds"),
        (
            {"max_dept": 5},
            "max_dept: neither a setting of the ranker nor a parameter of LightGBM; did you mean max_depth?",
        ),
        ({"patienc": 5}, "did you mean patience?"),
        ({"max_depth": "deep"}, "LightGBM refuses max_depth=deep"),
        ({"max_bin": 1}, "LightGBM refuses max_bin=1"),
        ({"path_smooth": None}, "path_smooth: a number"),
        ({"reg_alpha": 1, "lambda_l1": 2}, "lambda_l1 is given twice"),
        ({"params": 3}, "params: Input should be a valid dictionary"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(settings, words):
    assert words in refused(**settings)


def test_an_arm_has_parameters_of_its_own(tmp_path):
    content = {
        "arms": [
            {"name": "a", "label": "A", "role": "baseline"},
            {"name": "b", "label": "B", "adds": ["prior_llm"], "params": {"num_leaves": 7, "extra_trees": True}},
        ],
        "ranker": {"max_depth": 5},
    }
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(content))
    arms = load_arms(path)
    assert arms.config_of(arms.find("a")).params == {"max_depth": 5}
    config = arms.config_of(arms.find("b"))
    assert (config.num_leaves, config.params) == (7, {"max_depth": 5, "extra_trees": True})
    content["arms"][1]["params"] = {"num_leafs": 7}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(AdvpriorError, match=r"arm b: params: .*did you mean num_leaves"):
        load_arms(path)


@pytest.fixture(scope="module")
def parts():
    frame = synthetic_frame(users=60)
    return frame, [frame[frame["split"] == name] for name in ("train", "valid", "test")]


@pytest.mark.parametrize(
    "settings",
    [
        {"boosting": "dart"},
        {"boosting": "rf"},
        {"data_sample_strategy": "goss"},
        {"zero_as_missing": True, "extra_trees": True, "max_bin": 63, "cat_smooth": 1},
    ],
    ids=str,
)
def test_what_is_trained_with_them_is_saved_explained_and_compiled_alike(parts, tmp_path, settings):
    frame, (train, valid, test) = parts
    test = test.head(200)
    features = [feature for feature in features_of(frame) if feature.predictor in (None, "llm")]
    config = RankerConfig(max_rounds=12, num_leaves=8, learning_rate=0.2, threads=1, **settings)
    ranker = Ranker("s", features, config, seed=1).fit(train, valid)
    ranker.save(tmp_path / "ranker")
    loaded = Ranker.load(tmp_path / "ranker")
    assert loaded.config.params == config.params != {}
    scores = ranker.predict(test)
    assert loaded.predict(test) == pytest.approx(scores, rel=1e-9)
    matrix = loaded.encoder.encode(test)
    served = Predictor(loaded, tmp_path / "ranker", tmp_path / "cache")
    np.testing.assert_allclose(served.scores(matrix), scores, rtol=1e-6)
    np.testing.assert_allclose(served.contributions(matrix).sum(axis=1), loaded.raw(matrix), rtol=1e-6, atol=1e-9)
