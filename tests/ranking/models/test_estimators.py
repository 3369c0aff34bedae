"""A ranker of one's own: scikit-learn's conventions, the same measures, and one coded error for whatever it raises."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from advprior.cli import main
from advprior.store.errors import AdvpriorError
from ranking.evidence.ablation import ablate
from ranking.evidence.lift import Lifts
from ranking.evidence.metrics import Auc
from ranking.evidence.result import AblationResult
from ranking.evidence.verdict import Bench
from ranking.frame.table import Frame
from ranking.models.arms import Arm, load_arms
from ranking.models.estimators import make_estimator, ranker_identity
from tests.ranking.frames import write_frame

BOOSTING = "sklearn.ensemble:HistGradientBoostingClassifier"


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    return Frame.load(write_frame(tmp_path_factory.mktemp("frame") / "frame", users=80))


@pytest.fixture(scope="module")
def arms():
    return load_arms().only("neighbours").with_ranker(max_rounds=30, learning_rate=0.2, threads=1)


def arm(ranker, **params):
    return Arm(name="own", label="own", adds=("prior_llm",), ranker=ranker, params=params)


def test_a_class_by_its_path_and_an_object_are_measured_beside_lightgbm(frame, arms, tmp_path):
    own = arms.with_arm("boosted", ["prior_llm"], ranker=BOOSTING, params={"max_iter": 30, "max_features": 0.5})
    own = own.with_arm("linear", ["prior_llm"], ranker="sklearn.linear_model:LogisticRegression", params={"C": 0.1})
    trees = {"n_estimators": 10, "min_samples_leaf": 20}
    own = own.with_arm("forest", ["prior_llm"], ranker="sklearn.ensemble:RandomForestClassifier", params=trees)
    model = make_pipeline(
        FunctionTransformer(lambda x: x.select_dtypes("number").fillna(0)), LogisticRegression(max_iter=500)
    )
    own = own.with_arm("object", ["prior_llm"], ranker=model)
    result = ablate(frame, own, seeds=2, replicates=50)
    for name in ("boosted", "linear", "forest", "object"):
        assert result.lifts.get(name, "baseline", Auc.name).low > 0, name
        assert result.table().loc[name, "ece"] < 0.08, name
    by_seed = result.scores["boosted"]
    assert (by_seed[0] != by_seed[1]).any()  # another random_state
    assert (result.scores["linear"][0] == result.scores["linear"][1]).all()
    assert result.arms.find("linear").params == {"C": 0.1}
    assert "With boosted" in result.verdict.sentence
    assert "against the history baseline" in result.verdict.sentence
    # saved and loaded it is a result as any other, and is taken over where nothing identifies a change
    loaded = AblationResult.load(result.save(tmp_path / "ablation"))
    assert loaded.arms.find("boosted").ranker == BOOSTING
    again = ablate(frame, own, seeds=2, replicates=50, reuse=loaded)
    assert set(again.about["reused"]) == {"baseline", "neighbours", "boosted", "linear", "forest"}


class Seen:
    """Keeps what it was given."""

    def fit(self, x, y, sample_weight=None):
        Seen.x, Seen.y, Seen.weight = x, y, sample_weight
        return self

    def predict_proba(self, x):
        return np.full((len(x), 2), 0.5)


class Unweighted(Seen):
    def fit(self, x, y):
        return super().fit(x, y)


def test_it_gets_a_frame_of_numbers_categories_and_gaps_and_weights_where_it_takes_them(frame, arms):
    few = arms.with_ranker(negatives_per_positive=1)
    ablate(frame, few.only().with_arm("seen", ["prior_llm"], ranker=Seen), seeds=1, replicates=20)
    train = frame.rows[frame.rows["split"] == "train"]
    assert isinstance(Seen.x, pd.DataFrame)
    assert {"prior_llm_rank", "history_advertiser_all"} <= set(Seen.x.columns)
    assert "prior_neighbours_rank" not in Seen.x
    assert isinstance(Seen.x["profile_age"].dtype, pd.CategoricalDtype)
    assert Seen.x["history_recency_days"].isna().any()
    assert len(Seen.x) == 2 * train["label"].sum()
    assert Seen.weight.sum() == pytest.approx(len(train), rel=1e-5)
    ablate(frame, few.only().with_arm("seen", ["prior_llm"], ranker=Unweighted), seeds=1, replicates=20)
    assert len(Seen.x) == len(train)


class Broken(Seen):
    def fit(self, x, y):
        raise RuntimeError("no luck\nat all")


class Short(Seen):
    def predict_proba(self, x):
        return np.zeros((len(x), 3))


class Gaps(Seen):
    def predict_proba(self, x):
        return np.full((len(x), 2), np.nan)


@pytest.mark.parametrize(
    ("ranker", "words"),
    [
        (Broken, "fit(.|\n)*RuntimeError: no luck"),
        (Short, "predict_proba(.|\n)*ValueError: an array"),
        (Gaps, "not finite"),
        (object(), "no fit and no predict_proba"),
        ("no_such_module:x", "ModuleNotFoundError"),
        ("sklearn.ensemble:NoSuchThing", "AttributeError"),
        ("sklearn.linear_model:LinearRegression", "has no predict_proba"),
    ],
)
def test_whatever_it_raises_is_one_coded_error_that_names_the_arm(frame, arms, ranker, words):
    with pytest.raises(AdvpriorError, match=rf"RNK038: the ranker of arm `bad` failed(.|\n)*{words}"):
        ablate(frame, arms.only().with_arm("bad", ["prior_llm"], ranker=ranker), seeds=1, replicates=20)


def test_an_arm_of_another_ranker_is_held_against_the_baseline_of_that_ranker(arms):
    own = arms.with_arm("plain", [], role="control", ranker=BOOSTING, params={"max_iter": 5})
    own = own.with_arm("boosted", ["prior_llm"], ranker=BOOSTING, params={"max_iter": 5})
    own = own.with_arm("alone", ["prior_llm"], ranker=BOOSTING, params={"max_iter": 6})
    bench = Bench(Lifts([]), own, {}, Auc(), {})
    against = {arm.name: bench.baseline_of(arm).name for arm in own.arms}
    assert against == {
        "baseline": "baseline",
        "neighbours": "baseline",
        "plain": "baseline",
        "boosted": "plain",
        "alone": "baseline",
    }


def test_seeds_reach_every_random_state_and_a_functions_seed(tmp_path, monkeypatch):
    assert make_estimator(arm(BOOSTING, max_iter=3), 5).get_params()["random_state"] == 5
    (tmp_path / "own_ranker.py").write_text(
        "from sklearn.ensemble import HistGradientBoostingClassifier as H\n"
        "def make(seed, leaves):\n    return H(max_leaf_nodes=leaves + seed)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = make_estimator(arm("own_ranker:make", leaves=4), 5)
    assert (made.max_leaf_nodes, made.random_state) == (9, 5)
    before = ranker_identity(arm("own_ranker:make", leaves=4))
    (tmp_path / "own_ranker.py").write_text("def make(seed): ...\n")
    assert ranker_identity(arm("own_ranker:make", leaves=4)) != before
    model = make_pipeline(FunctionTransformer(), HistGradientBoostingClassifier(random_state=1))
    given = load_arms().with_arm("given", [], ranker=model).find("given")
    assert make_estimator(given, 7).get_params()["histgradientboostingclassifier__random_state"] == 7
    assert model.get_params()["histgradientboostingclassifier__random_state"] == 1  # the user's object stays


def test_a_ranker_of_a_project_is_imported_from_there_and_never_trained_to_be_served(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine"
    write_frame(folder / "frame", users=40, slates=6)
    (folder / "advprior.yaml").write_text("arms: {file: my_arms.yaml}\n")
    (folder / "my_arms.yaml").write_text(
        "arms:\n- {name: baseline, label: B, role: baseline}\n"
        "- {name: own, label: O, adds: [prior_llm], ranker: 'ranker_of_mine:make', params: {max_iter: 5}}\n"
    )
    (folder / "ranker_of_mine.py").write_text("from sklearn.ensemble import HistGradientBoostingClassifier as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for words, code, shown in (
        (["rank", "arms"], 0, ""),
        (["rank", "train", "--frame", "mine/frame", "--arm", "own", "--out", "ranker"], 2, "error RNK039"),
        (["rank", "ablate", "--frame", "mine/frame", "--out", "ablation", "--seeds", "1", "--replicates", "20"], 0, ""),
    ):
        with pytest.raises(SystemExit) as left:
            main(words)
        printed = capsys.readouterr()
        assert (int(left.value.code or 0), shown in printed.err) == (code, True), printed
    assert not (tmp_path / "ranker").exists()


def test_the_verdict_names_the_baseline_that_it_was_held_against(frame, arms):
    own = arms.only().with_arm("plain", [], role="control", label="Boosting, no priors", ranker=BOOSTING)
    result = ablate(frame, own.with_arm("boosted", ["prior_llm"], ranker=BOOSTING), seeds=1, replicates=20)
    assert "against the boosting, no priors" in result.verdict.sentence
