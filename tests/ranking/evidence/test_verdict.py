"""The verdict follows from the numbers: every outcome, and the words that must stand in it."""

from dataclasses import replace

import pytest

from ranking.evidence.lift import Lift, Lifts
from ranking.evidence.verdict import judge
from ranking.evidence.wording import signed
from ranking.models.arms import Arms, load_arms


def lift(arm, baseline, difference, low, high, segment="overall"):
    return Lift(arm, baseline, "auc", segment, 0.9 + difference, 0.9, difference, difference / 0.9, low, high, 1000)


def verdict(llm, over_control=(0.0, -0.001, 0.001), placebo=(0.0001, -0.0004, 0.0006), best_control="neighbours"):
    lifts = Lifts(
        [
            lift("llm", "baseline", *llm),
            lift("placebo", "baseline", *placebo),
            lift("llm", "placebo", llm[0] - placebo[0], llm[1], llm[2]),
            lift("llm", "neighbours", *over_control),
            lift("llm", "baseline", 0.002, 0.001, 0.003, segment="never_advertiser"),
        ]
    )
    return judge(lifts, load_arms(), best_control=best_control)


def test_clear_win():
    said = verdict((0.005, 0.003, 0.007), over_control=(0.004, 0.002, 0.006))
    assert said.kind == "win"
    assert said.sentence == (
        "With LLM priors the ranker's AUC changes by +0.0050 [+0.0030, +0.0070] against the history baseline: "
        "a clear gain, also over the best control (neighbour prior): +0.0040 [+0.0020, +0.0060]. "
        "Placebo: +0.0001 [−0.0004, +0.0006], not told apart from zero, as it should be."
    )


def test_win_over_the_baseline_but_not_over_the_control():
    said = verdict((0.005, 0.003, 0.007), over_control=(0.0002, -0.001, 0.001))
    assert said.kind == "win_not_over_control"
    assert (
        "but not over the best control (neighbour prior): +0.0002 [−0.0010, +0.0010]; a cheaper prior does as well"
        in said.sentence
    )
    worse = verdict((0.005, 0.003, 0.007), over_control=(-0.002, -0.003, -0.001))
    assert worse.kind == "win_not_over_control"
    assert "the cheaper prior is the better one" in worse.sentence


def test_clear_loss():
    said = verdict((-0.005, -0.007, -0.003))
    assert said.kind == "loss"
    assert "−0.0050 [−0.0070, −0.0030]" in said.sentence
    assert "a clear loss" in said.sentence


def test_rankers_that_never_use_the_prior_claim_nothing():
    """Without a single split on it, an interval of no width says nothing of what would have shown."""
    nothing = [
        replace(lift(*names, 0.0, 0.0, 0.0), error=0.0)
        for names in (("llm", "baseline"), ("placebo", "baseline"), ("llm", "placebo"), ("llm", "neighbours"))
    ]
    said = judge(Lifts(nothing), load_arms(), best_control="neighbours")
    assert said.kind == "unclear"
    assert "no tree uses a feature of this prior" in said.sentence
    assert "would have shown four times in five" not in said.sentence


def test_unclear():
    said = verdict((0.0012, -0.0003, 0.0027))
    assert said.kind == "unclear"
    assert "no clear effect" in said.sentence
    assert "a gain" not in said.sentence


@pytest.mark.parametrize(
    ("placebo", "words"),
    [((0.002, 0.001, 0.003), "wrong user must not help"), ((-0.002, -0.003, -0.001), "cost the ranker")],
)
@pytest.mark.parametrize("llm", [(0.005, 0.003, 0.007), (-0.005, -0.007, -0.003), (0.0, -0.001, 0.001)])
def test_a_placebo_that_is_not_null_takes_the_trust_away(placebo, words, llm):
    said = verdict(llm, over_control=llm, placebo=placebo)
    assert said.kind == "untrusted"
    assert said.sentence.startswith("This measurement is not to be trusted: the placebo changes AUC by")
    assert words in said.sentence
    assert "against the placebo" in said.sentence


def test_without_a_control_or_a_number():
    said = verdict((0.005, 0.003, 0.007), best_control=None)
    assert said.kind == "win"
    assert "no cheaper prior was measured" in said.sentence
    nothing = float("nan")
    assert verdict((nothing, nothing, nothing)).kind == "undefined"


def test_segments_are_told_beside_the_verdict():
    assert verdict((0.0, -0.001, 0.001)).details == [
        "Advertisers new to the user: AUC +0.0020 [+0.0010, +0.0030], a clear gain."
    ]


def test_numbers_are_written_alike():
    assert signed(-0.00004) == "0.0000"
    assert lift("a", "b", -0.1, -0.2, 0.0).text() == "−0.1000 [−0.2000, 0.0000]"


def test_no_lift_says_what_it_could_have_shown_and_where_most_is_to_be_seen():
    lifts = Lifts(
        [
            replace(lift("llm", "baseline", 0.0001, -0.0004, 0.0006), error=0.00025),
            replace(lift("llm", "baseline", 0.0020, -0.0020, 0.0060, segment="never_ad"), error=0.002),
            replace(lift("llm", "baseline", 0.0010, -0.0002, 0.0022, segment="few_events"), error=0.0006),
        ]
    )
    arms = load_arms()
    said = judge(lifts, Arms(arms=(arms.baseline, arms.find("llm"))))
    assert "A true lift of 0.0007 would have shown four times in five" in said.sentence
    nearest = "the most is to be seen in “users with the fewest events”: +0.0010 [−0.0002, +0.0022]"
    assert nearest in said.sentence  # the smaller lift, but further from zero for its error


@pytest.mark.parametrize(("adjusted_low", "named"), [(0.0004, True), (-0.0001, False)])
def test_another_treatment_that_gains_is_named_with_its_own_placebo(adjusted_low, named):
    arms = load_arms()
    some = Arms(
        arms=tuple(
            arms.find(name)
            for name in ("baseline", "llm", "placebo", "text_pair", "placebo_text_pair", "llm_lambdarank")
        )
    )
    pair = lift("text_pair", "baseline", 0.0017, 0.0008, 0.0026)
    lifts = Lifts(
        [
            lift("llm", "baseline", 0.0001, -0.0005, 0.0006),
            lift("placebo", "baseline", 0.0003, -0.0002, 0.0009),
            replace(pair, adjusted_low=adjusted_low, adjusted_high=0.0030),
            lift("placebo_text_pair", "baseline", 0.0004, 0.0001, 0.0006),
            lift("llm", "placebo", -0.0002, -0.0009, 0.0005),
            lift("text_pair", "placebo_text_pair", 0.0013, 0.0007, 0.0019),
            # another objective is another ranker: not a gain of its priors
            replace(lift("llm_lambdarank", "baseline", 0.01, 0.009, 0.011), adjusted_low=0.008, adjusted_high=0.012),
        ]
    )
    said = judge(lifts, some)
    assert said.kind == "unclear"  # the placebo of another treatment takes nothing from the first
    words = (
        "these gain: LLM text prior by category +0.0017 [+0.0004, +0.0030] "
        "(its placebo +0.0004 [+0.0001, +0.0006]; against that +0.0013 [+0.0007, +0.0019])."
    )
    assert (words in said.sentence) is named
    assert "lambdarank" not in said.sentence
