"""Arms are read strictly: what a file says is what is compared."""

import pytest

from feature_repo.contract import BASELINE_SERVICE, PREDICTORS, prior_service
from feature_repo.errors import AdvpriorError
from ranking.arms import arm_features, feature_columns, load_arms

COLUMNS = ["impression_id", "ad_id", "label", "split", "segment_never_ad", "profile_age", "history_all",
           "prior_llm_rank", "prior_llm_log_prob", "prior_neighbours_rank"]  # fmt: skip


def test_packaged_arms_cover_every_predictor_and_its_service():
    arms = load_arms()
    assert arms.baseline.service == BASELINE_SERVICE
    assert {arm.service for arm in arms.arms if not arm.is_baseline} == {prior_service(p) for p in PREDICTORS}
    assert [arm.name for arm in arms.of_role("control")] == ["popularity", "neighbours"]


def test_an_arm_is_the_baseline_plus_what_it_names():
    arms = load_arms()
    assert arm_features(arms.baseline, COLUMNS) == ["profile_age", "history_all"]
    assert arm_features(arms.find("llm"), COLUMNS) == [
        "profile_age",
        "history_all",
        "prior_llm_rank",
        "prior_llm_log_prob",
    ]
    rank_only = arms.find("llm").model_copy(update={"adds": ("prior_llm_rank",)})
    assert arm_features(rank_only, COLUMNS) == ["profile_age", "history_all", "prior_llm_rank"]
    assert "ad_id" not in feature_columns(COLUMNS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arms: [{name: a, service: s, label: A, role: baseline, colour: red}]", "colour"),
        ("arms: [{name: a, service: s, label: A}]", "exactly one arm has `role: baseline`"),
        ("arms: [{name: a, service: s, label: A, role: baseline}, {name: a, service: t, label: B}]", "twice: a"),
        ("arms: [{name: a, service: s, label: A, role: champion}]", "baseline"),
        ("arms: [{name: a, service: s, label: A, role: baseline}]\nranker: {learning_rate: 7}", "learning_rate"),
        ("arms: [", "not YAML"),
        ("", "arms"),
    ],
)
def test_what_is_wrong_with_an_arms_file_is_said(tmp_path, text, words):
    path = tmp_path / "arms.yaml"
    path.write_text(text)
    with pytest.raises(AdvpriorError) as error:
        load_arms(path)
    assert error.value.code == "CFG001"
    assert words in str(error.value)
    with pytest.raises(AdvpriorError, match="CFG001"):
        load_arms(tmp_path / "none.yaml")
