"""Arms are read strictly: what a file says is what is compared."""

import pytest

from advprior.store.contract import BASELINE_SERVICE, PREDICTORS, prior_service
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature
from ranking.models.arms import Arm, Arms, arm_features, load_arms, predictors_of
from ranking.models.available import with_available


def prior(name: str, *quantities: str, source: str | None = None) -> list[Feature]:
    return [Feature(f"prior_{name}_{quantity}", f"prior_{name}", source or f"prior_{name}") for quantity in quantities]


FEATURES = [
    Feature("profile_age", "profile", "user_profile", "category"),
    Feature("history_all", "history", "user_history"),
    *prior("llm", "rank", "log_prob"),
    *prior("neighbours", "rank"),
]


def named(arm, features):
    return [feature.name for feature in arm_features(arm, features)]


def test_packaged_arms_cover_every_predictor_and_its_service():
    arms = load_arms()
    assert arms.baseline.service == BASELINE_SERVICE
    assert {arm.service for arm in arms.arms} >= {prior_service(p) for p in PREDICTORS}
    assert [arm.name for arm in arms.of_role("control")][:2] == ["popularity", "neighbours"]
    assert arms.of_role("treatment")[0].name == "llm"
    for arm in arms.arms:
        if arm.role != "placebo" and not arm.optional and not arm.is_baseline:
            name = "llm" if arm.name == "llm" else arm.service.removeprefix("ranker_with_").removesuffix("_v1")
            assert (arm.service, arm.adds) == (prior_service(name), (f"prior_{name}",))


def test_an_arm_is_left_out_when_nobody_published_its_priors_and_refused_when_asked_for():
    arms = load_arms()
    kept, left_out = with_available(arms, FEATURES)
    assert [arm.name for arm in kept.arms] == ["baseline", "neighbours", "llm"]
    assert left_out["sasrec"] == "prior_sasrec"
    assert "llm_rank" not in left_out  # optional: not even looked for
    asked, _ = with_available(arms, FEATURES, ["llm_rank", "neighbours"])
    assert [arm.name for arm in asked.arms] == ["baseline", "neighbours", "llm_rank"]
    with pytest.raises(AdvpriorError, match="RNK022"):
        with_available(arms, FEATURES, ["sasrec"])
    with pytest.raises(AdvpriorError, match="RNK021"):
        with_available(arms, FEATURES, ["llm_rnak"])
    slip = Arms(arms=(arms.baseline, arms.find("llm").model_copy(update={"adds": ("prior_llm_rnak",)})))
    with pytest.raises(AdvpriorError, match=r"RNK022(.|\n)*prior_llm_rnak"):
        with_available(slip, FEATURES)


def test_a_predictor_with_a_name_of_several_words_is_one_group():
    columns = [
        *FEATURES,
        *prior("zero_shot", "log_prob", "rank"),
        *prior("stale4w_llm", "rank", source="prior_llm"),
    ]
    kept, _ = with_available(load_arms(), columns)
    zero = kept.find("zero_shot")
    assert named(zero, columns)[-2:] == ["prior_zero_shot_log_prob", "prior_zero_shot_rank"]
    stale, _ = with_available(load_arms(), columns, ["llm_stale_4w", "llm"])
    assert named(stale.find("llm_stale_4w"), columns)[2:] == ["prior_stale4w_llm_rank"]
    assert "prior_stale4w_llm_rank" not in named(stale.find("llm"), columns)
    assert predictors_of(stale.find("llm_stale_4w"), columns) == ["llm"]


def test_an_arm_may_change_the_rankers_settings():
    arms = load_arms()
    assert arms.config_of(arms.find("llm")) == arms.ranker
    assert arms.config_of(arms.find("llm_lambdarank")).objective == "lambdarank"
    assert arms.config_of(arms.find("llm_monotone")).monotone


def test_an_arm_is_the_baseline_plus_what_it_names():
    arms = load_arms()
    assert named(arms.baseline, FEATURES) == ["profile_age", "history_all"]
    assert named(arms.find("llm"), FEATURES) == [
        "profile_age",
        "history_all",
        "prior_llm_rank",
        "prior_llm_log_prob",
    ]
    rank_only = arms.find("llm").model_copy(update={"adds": ("prior_llm_rank",)})
    assert named(rank_only, FEATURES) == ["profile_age", "history_all", "prior_llm_rank"]


def test_counts_by_cluster_are_in_the_arms_that_add_them():
    """And in no other: neither in the baseline nor beside a prior. A user's own view of that name is theirs."""
    own = Feature("cluster__size", "cluster", "cluster")
    features = [*FEATURES, Feature("history_cluster_1w", "cluster", "user_history"), own]
    arms = load_arms()
    assert named(arms.baseline, features) == ["profile_age", "history_all", "cluster__size"]
    assert "history_cluster_1w" not in named(arms.find("llm"), features)
    assert named(arms.find("cluster"), features)[-2:] == ["history_cluster_1w", "cluster__size"]
    both = arms.find("llm").model_copy(update={"adds": ("prior_llm_rank", "cluster")})
    assert {"prior_llm_rank", "history_cluster_1w"} <= set(named(both, features))
    with pytest.raises(AdvpriorError, match="advprior data clusters"):
        arm_features(arms.find("cluster"), FEATURES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arms: [{name: a, service: s, label: A, role: baseline, colour: red}]", "colour"),
        ("arms: [{name: a, service: s, label: A}]", "exactly one arm has `role: baseline`"),
        ("arms: [{name: a, service: s, label: A, role: baseline}, {name: a, service: t, label: B}]", "twice: a"),
        ("arms: [{name: a, service: s, label: A, role: champion}]", "baseline"),
        ("arms: [{name: a, service: s, label: A, role: baseline}]\nranker: {learning_rate: 7}", "learning_rate"),
        (
            "arms: [{name: a, service: s, label: A, role: baseline}, {name: b, service: t, label: B, of: a}]",
            "a placebo shuffles",
        ),
        (
            "arms: [{name: a, label: A, role: baseline}, {name: b, label: B, kind: lexical, of: a}]",
            "`kind` is for controls",
        ),
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
    features = [
        FEATURES[1],
        *prior("neighbours", "rank", "interest_log_prob"),
        *prior("neighbours_pair", "rank", "tail_log_mass"),
    ]
    arms = load_arms()
    assert named(arms.find("neighbours"), features) == [f.name for f in features[:3]]
    assert named(arms.find("neighbours_pair"), features) == [f.name for f in (features[0], *features[3:])]
    # what only `text_pair` published is nobody else's: no arm `text` is measured
    kept, left_out = with_available(load_arms(), [FEATURES[1], *prior("text_pair", "rank", "tail_log_mass")])
    assert [arm.name for arm in kept.arms] == ["baseline", "text_pair"]
    assert left_out["text"] == "prior_text"
    kept, left_out = with_available(load_arms(), [FEATURES[1], *prior("text", "rank", "tail_log_mass")])
    assert [arm.name for arm in kept.arms] == ["baseline", "text"]
    assert left_out["text_pair"] == "prior_text_pair"


def test_old_patterns_of_a_whole_prior_are_its_group_and_others_are_refused():
    arm = Arm(name="mine", service="s", label="mine", adds=("prior_llm_*", "prior_neighbours_rank"))
    assert arm.adds == ("prior_llm", "prior_neighbours_rank")
    with pytest.raises(ValueError, match=r"patterns are not read: prior_llm_lo\*; write a group"):
        Arm(name="mine", service="s", label="mine", adds=("prior_llm_lo*",))


def test_optional_arms_are_measured_where_the_frame_can_feed_them():
    kept, left_out = with_available(load_arms(), [*FEATURES, *prior("llm", "top20")], optional=True)
    names = [arm.name for arm in kept.arms]
    assert {"llm_rank", "llm_log_prob", "llm_lambdarank"} <= set(names)
    assert left_out["llm_stale_1w"] == "prior_stale1w_llm"
