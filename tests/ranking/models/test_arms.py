"""Arms are read strictly: what a file says is what is compared."""

import pytest

from advprior.store.contract import BASELINE_SERVICE, PREDICTORS, prior_service
from advprior.store.errors import AdvpriorError
from ranking.models.arms import Arms, arm_features, feature_columns, load_arms, with_available

COLUMNS = [
    "impression_id",
    "ad_id",
    "label",
    "split",
    "segment_never_ad",
    "profile_age",
    "history_all",
    "prior_llm_rank",
    "prior_llm_log_prob",
    "prior_neighbours_rank",
]


def test_packaged_arms_cover_every_predictor_and_its_service():
    arms = load_arms()
    assert arms.baseline.service == BASELINE_SERVICE
    assert {arm.service for arm in arms.arms} >= {prior_service(p) for p in PREDICTORS}
    assert [arm.name for arm in arms.of_role("control")][:2] == ["popularity", "neighbours"]
    assert arms.of_role("treatment")[0].name == "llm"
    for arm in arms.arms:
        if arm.role != "placebo" and not arm.optional and not arm.is_baseline:
            name = "llm" if arm.name == "llm" else arm.service.removeprefix("ranker_with_").removesuffix("_v1")
            assert (arm.service, arm.adds) == (prior_service(name), (f"prior_{name}_*",))


def test_an_arm_is_left_out_when_nobody_published_its_priors_and_refused_when_asked_for():
    arms = load_arms()
    kept, left_out = with_available(arms, COLUMNS)
    assert [arm.name for arm in kept.arms] == ["baseline", "neighbours", "llm"]
    assert left_out["sasrec"] == "prior_sasrec_*"
    assert "llm_rank" not in left_out  # optional: not even looked for
    asked, _ = with_available(arms, COLUMNS, ["llm_rank", "neighbours"])
    assert [arm.name for arm in asked.arms] == ["baseline", "neighbours", "llm_rank"]
    with pytest.raises(AdvpriorError, match="RNK022"):
        with_available(arms, COLUMNS, ["sasrec"])
    with pytest.raises(AdvpriorError, match="RNK021"):
        with_available(arms, COLUMNS, ["llm_rnak"])
    slip = Arms(arms=(arms.baseline, arms.find("llm").model_copy(update={"adds": ("prior_llm_rnak",)})))
    with pytest.raises(AdvpriorError, match=r"RNK022(.|\n)*prior_llm_rnak"):
        with_available(slip, COLUMNS)


def test_a_predictor_with_a_name_of_several_words_is_one_group():
    columns = [*COLUMNS, "prior_zero_shot_log_prob", "prior_zero_shot_rank", "prior_stale4w_llm_rank"]
    kept, _ = with_available(load_arms(), columns)
    zero = kept.find("zero_shot")
    assert arm_features(zero, columns)[-2:] == ["prior_zero_shot_log_prob", "prior_zero_shot_rank"]
    stale, _ = with_available(load_arms(), columns, ["llm_stale_4w", "llm"])
    assert arm_features(stale.find("llm_stale_4w"), columns)[2:] == ["prior_stale4w_llm_rank"]
    assert "prior_stale4w_llm_rank" not in arm_features(stale.find("llm"), columns)


def test_an_arm_may_change_the_rankers_settings():
    arms = load_arms()
    assert arms.config_of(arms.find("llm")) == arms.ranker
    assert arms.config_of(arms.find("llm_lambdarank")).objective == "lambdarank"
    assert arms.config_of(arms.find("llm_monotone")).monotone


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
        ("arms: [{name: a, service: s, label: A, role: baseline}, {name: b, service: t, label: B, of: a}]", "placebos"),
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


def test_a_placebo_imitates_the_arm_that_it_names_or_the_first_treatment():
    arms = load_arms()
    assert arms.placebo_of(arms.find("llm")).name == "placebo"
    assert arms.placebo_of(arms.find("text_pair")).name == "placebo_text_pair"
    assert arms.placebo_of(arms.find("hybrid")) is None
    # where it stands alone with another placebo, that one is better than none
    alone = Arms(arms=(arms.baseline, arms.find("hybrid"), arms.find("placebo_text_pair")))
    assert alone.placebo_of(alone.find("hybrid")).name == "placebo_text_pair"


def test_a_variant_is_held_against_variants_only():
    arms = load_arms()
    against = [arm.name for arm in arms.controls_of(arms.find("llm"))]
    assert {"neighbours", "sasrec_pair"} <= set(against)
    assert "baseline_lambdarank" not in against
    assert [arm.name for arm in arms.controls_of(arms.find("llm_lambdarank"))] == ["baseline_lambdarank"]
    asked = Arms(arms=tuple(arms.find(name) for name in ("baseline", "neighbours", "llm_rank")))
    assert [arm.name for arm in asked.controls_of(asked.find("llm_rank"))] == ["neighbours"]


def test_an_arm_takes_no_column_of_a_predictor_whose_name_goes_on():
    columns = [
        "history_all",
        "prior_neighbours_rank",
        "prior_neighbours_pair_rank",
        "prior_neighbours_interest_log_prob",
    ]
    arms = load_arms()
    assert arm_features(arms.find("neighbours"), columns) == [columns[0], columns[1], columns[3]]
    assert arm_features(arms.find("neighbours_pair"), columns) == [columns[0], columns[2]]


def test_optional_arms_are_measured_where_the_frame_can_feed_them():
    kept, left_out = with_available(load_arms(), [*COLUMNS, "prior_llm_top20"], optional=True)
    names = [arm.name for arm in kept.arms]
    assert {"llm_rank", "llm_log_prob", "llm_lambdarank"} <= set(names)
    assert left_out["llm_stale_1w"] == "prior_stale1w_llm_*"
