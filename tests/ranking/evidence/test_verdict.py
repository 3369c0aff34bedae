"""The verdict follows from the numbers: every outcome, the words that must stand in it, and those that must not."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranking.candidates.cells import BOTH, CONTROL, EFFECTS, NEITHER, PLACEBO_ROLE, RETRIEVAL, addition, cell
from ranking.candidates.curve import _COLUMNS, CandidateCurve
from ranking.candidates.endtoend import TwoByTwo
from ranking.evidence.claims import gaps_to_json
from ranking.evidence.lift import Lift, Lifts
from ranking.evidence.result import AblationResult
from ranking.evidence.summary import Evidence, opening_lines
from ranking.evidence.verdict import Verdict, judge
from ranking.evidence.wording import signed
from ranking.frame.coverage import CoverageGap
from ranking.models.arms import Arms, load_arms


def lift(arm, baseline, difference, low, high, segment="overall", **more):
    values = (0.9 + difference, 0.9, difference, difference / 0.9, low, high, 1000)
    return Lift(arm, baseline, "auc", segment, *values, **more)


def verdict(llm, over_control=(0.0, -0.001, 0.001), placebo=(0.0001, -0.0004, 0.0006), control="neighbours", gaps=None):
    lifts = Lifts(
        [
            lift("llm", "baseline", *llm),
            lift("placebo", "baseline", *placebo),
            lift("neighbours", "baseline", 0.001, -0.001, 0.003),
            lift("llm", "placebo", llm[0] - placebo[0], llm[1], llm[2]),
            lift("llm", "neighbours", *over_control),
            lift("llm", "baseline", 0.002, 0.001, 0.003, segment="never_advertiser"),
            lift("placebo", "baseline", 0.002, 0.001, 0.003, segment="never_advertiser"),
        ]
    )
    named = {} if control is None else {"llm": control}
    return judge(lifts, load_arms(), best_controls=named, gaps=gaps)


def test_clear_win():
    outcome = verdict((0.005, 0.003, 0.007), over_control=(0.004, 0.002, 0.006))
    assert outcome.kind == "win"
    assert outcome.headline == "LLM priors: clear gain"
    assert outcome.sentence == (
        "With LLM priors in ranking, AUC changes by +0.0050 [+0.0030, +0.0070] against the history baseline: "
        "a clear gain, also over the best control "
        "(best control, neighbour prior: +0.0010 [−0.0010, +0.0030], LLM priors over it +0.0040 [+0.0020, +0.0060]; "
        "its placebo: +0.0001 [−0.0004, +0.0006], LLM priors over it +0.0049 [+0.0030, +0.0070])."
    )


def test_win_over_the_baseline_but_not_over_the_control():
    outcome = verdict((0.005, 0.003, 0.007), over_control=(0.0002, -0.001, 0.001))
    assert outcome.kind == "win_not_over_control"
    assert "a gain, but not over the best control: a cheaper prior may do as well" in outcome.sentence
    assert "LLM priors over it +0.0002 [−0.0010, +0.0010]" in outcome.sentence
    worse = verdict((0.005, 0.003, 0.007), over_control=(-0.002, -0.003, -0.001))
    assert worse.kind == "win_not_over_control"
    assert "the cheaper prior is the better one" in worse.sentence


def test_a_loss_is_clear_only_beyond_the_placebo():
    outcome = verdict((-0.005, -0.007, -0.003))
    assert outcome.kind == "loss"
    assert "−0.0050 [−0.0070, −0.0030]" in outcome.sentence
    assert "a clear loss, against the placebo as well" in outcome.sentence
    lifts = [lift("llm", "baseline", -0.005, -0.007, -0.003), lift("placebo", "baseline", -0.004, -0.009, 0.001)]
    shared = judge(Lifts([*lifts, lift("llm", "placebo", -0.001, -0.005, 0.003)]), load_arms())
    assert shared.kind == "loss_unchecked"
    assert "a loss; not told apart from the placebo" in shared.sentence
    assert judge(Lifts(lifts[:1]), load_arms()).kind == "loss_unchecked"


def test_rankers_that_never_use_the_prior_claim_nothing():
    """Without a single split on it, an interval of no width says nothing of what would have shown."""
    nothing = [
        replace(lift(*names, 0.0, 0.0, 0.0), error=0.0)
        for names in (("llm", "baseline"), ("placebo", "baseline"), ("llm", "placebo"), ("llm", "neighbours"))
    ]
    outcome = judge(Lifts(nothing), load_arms(), best_controls={"llm": "neighbours"})
    assert outcome.kind == "unclear"
    assert "no tree uses a feature of this prior" in outcome.sentence
    assert "would have shown four times in five" not in outcome.sentence


@pytest.mark.parametrize(
    ("placebo", "words"),
    [((0.002, 0.001, 0.003), "wrong user must not help"), ((-0.002, -0.003, -0.001), "cost the ranker")],
)
@pytest.mark.parametrize("llm", [(0.005, 0.003, 0.007), (-0.005, -0.007, -0.003), (0.0, -0.001, 0.001)])
def test_a_placebo_that_is_not_null_takes_the_trust_away(placebo, words, llm):
    outcome = verdict(llm, over_control=llm, placebo=placebo)
    assert outcome.kind == "untrusted"
    assert outcome.sentence.startswith("This measurement is not to be trusted: the placebo changes AUC by")
    assert words in outcome.sentence
    assert "LLM priors over it" in outcome.sentence


def test_a_placebo_that_is_off_in_a_segment_takes_the_trust_from_that_segment():
    (line,) = verdict((0.005, 0.003, 0.007), over_control=(0.004, 0.002, 0.006)).details
    assert line.startswith("Advertisers new to the user: AUC +0.0020 [+0.0010, +0.0030] with LLM priors: not to be")
    assert "which should be nothing and is not" in line


def test_without_a_control_nothing_is_clear():
    outcome = verdict((0.005, 0.003, 0.007), control=None)
    assert outcome.kind == "gain"
    assert "a gain; whether a control does as well was not measured (no control was" in outcome.sentence
    nothing = float("nan")
    assert verdict((nothing, nothing, nothing)).kind == "undefined"


def test_too_few_priors_refuse_the_verdict_with_cause_and_cure():
    gap = CoverageGap(0.62, "its published rows begin late", "advprior publish priors/llm --repo feature_repo")
    outcome = verdict((0.005, 0.003, 0.007), over_control=(0.004, 0.002, 0.006), gaps={"llm": gap})
    assert outcome.kind == "undefined"
    assert (
        "only 62 % of the impressions have this prior: its published rows begin late; fix: advprior publish priors/llm"
        in outcome.sentence
    )
    assert "a gain" not in outcome.sentence
    short = verdict((0.005, 0.003, 0.007), over_control=(0.004, 0.002, 0.006), gaps={"neighbours": gap})
    assert short.kind == "gain"
    assert "[−0.0010, +0.0030] with a prior on 62 % of the impressions only" in short.sentence


def test_numbers_are_written_alike():
    assert signed(-0.00004) == "0.0000"
    assert lift("a", "b", -0.1, -0.2, 0.0).text() == "−0.1000 [−0.2000, 0.0000]"


def test_no_lift_says_what_it_could_have_shown_and_where_it_rises_most():
    lifts = Lifts(
        [
            replace(lift("llm", "baseline", 0.0001, -0.0004, 0.0006), error=0.00025),
            replace(lift("llm", "baseline", 0.0020, -0.0020, 0.0060, segment="never_ad"), error=0.002),
            replace(lift("llm", "baseline", 0.0010, -0.0002, 0.0022, segment="few_events"), error=0.0006),
        ]
    )
    arms = load_arms()
    some = Arms(arms=(arms.baseline, arms.find("llm")))
    outcome = judge(lifts, some)
    assert "A true lift of 0.0007 would have shown four times in five" in outcome.sentence
    nearest = "“users with the fewest events”: +0.0010 [−0.0002, +0.0022], no clear effect (no control was"
    assert nearest in outcome.sentence  # the smaller lift, but further from zero for its error
    falls = Lifts([lifts[0], replace(lift("llm", "baseline", -0.0024, -0.005, 0.001, segment="never_ad"), error=0.001)])
    assert "In no segment does it rise." in judge(falls, some).sentence


def test_every_treatment_is_judged_with_its_own_placebo():
    arms = load_arms()
    names = ("baseline", "llm", "placebo", "text_pair", "placebo_text_pair", "baseline_lambdarank", "llm_lambdarank")
    pair = replace(lift("text_pair", "baseline", 0.0017, 0.0008, 0.0026), adjusted_low=0.0004, adjusted_high=0.0030)
    lifts = Lifts(
        [
            lift("llm", "baseline", 0.0001, -0.0005, 0.0006),
            lift("placebo", "baseline", 0.0003, -0.0002, 0.0009),
            pair,
            lift("placebo_text_pair", "baseline", 0.0004, -0.0001, 0.0006),
            lift("llm", "placebo", -0.0002, -0.0009, 0.0005),
            lift("text_pair", "placebo_text_pair", 0.0013, 0.0007, 0.0019),
            # another objective is another ranker: held against its own baseline
            lift("llm_lambdarank", "baseline", 0.01, 0.009, 0.011),
            lift("llm_lambdarank", "baseline_lambdarank", 0.0, -0.001, 0.001),
        ]
    )
    outcome = judge(lifts, Arms(arms=tuple(arms.find(name) for name in names)))
    assert outcome.kind == "unclear"  # the placebo of another treatment takes nothing from the first
    assert [(other.arm, other.kind) for other in outcome.others] == [
        ("text_pair", "gain"),
        ("llm_lambdarank", "unclear"),
    ]
    words = "With LLM text prior by category, AUC +0.0017 [+0.0004, +0.0030]: a gain; whether a control does"
    assert outcome.others[0].sentence.startswith(words)
    assert "its placebo: +0.0004 [−0.0001, +0.0006], LLM text prior by category over" in outcome.others[0].sentence
    assert "against the history baseline (lambdarank)" in outcome.others[1].sentence
    assert Verdict.from_json(outcome.to_json()) == outcome


def test_controls_alone_are_compared_with_the_baseline():
    arms = load_arms()
    some = Arms(arms=tuple(arms.find(name) for name in ("baseline", "popularity", "neighbours")))
    lifts = Lifts([lift("popularity", "baseline", 0.0, -0.1, 0.1), lift("neighbours", "baseline", 0.2, 0.1, 0.3)])
    outcome = judge(lifts, some, best_controls={"popularity": "neighbours", "neighbours": "neighbours"})
    assert (outcome.kind, outcome.headline) == ("controls", "No treatment: what controls give")
    assert "this is what controls give, the best on validation first: with neighbour prior, AUC" in outcome.sentence
    assert "clear gain" not in outcome.sentence
    assert outcome.sentence.endswith("(a control itself; no placebo was measured in this step).")
    assert [other.arm for other in outcome.others] == ["popularity"]


# -- a property over everything that is said ------------------------------------------------------------------------

NUMBERS = st.floats(-0.02, 0.02).map(lambda x: round(x, 4))
WIDTHS = st.floats(0.0001, 0.01).map(lambda x: round(x, 4))


def sentences_are_whole(told, *, one_seed, control, placebo, decides=True):
    """A sentence that says gain or loss names control and placebo with numbers, or that none was measured."""
    assert told
    for text in told:
        if re.search(r"\b(gain|loss)\b", text):
            assert ("best control" in text.lower() and control) or "o control was measured" in text, text
            assert ("placebo" in text and placebo) or "o placebo was measured" in text, text
        if not control:
            assert "over the best control" not in text, text
            assert "does as well;" not in text, text
            assert "a clear gain" not in text, text
        if not placebo:
            assert "clear loss" not in text, text
            assert "its placebo" not in text, text
        if one_seed:
            assert not re.search(r"\bclear\b", text), text
        if not decides:
            assert not re.search(r"\ba clear\b|no clear effect", text), text


@st.composite
def lifts_of_arms(draw, pairs, segments=("overall",), metric="auc", seeds=None):
    lifts = Lifts()
    for segment in segments:
        for arm, against in pairs:
            value, wide = draw(NUMBERS), draw(WIDTHS)
            one = lift(arm, against, value, value - wide, value + wide, segment=segment, seeds=seeds, error=wide / 2)
            joint = {"adjusted_low": value - 1.3 * wide, "adjusted_high": value + 1.3 * wide}
            lifts.append(replace(one, metric=metric, **(joint if draw(st.booleans()) else {})))
    return lifts


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0, 1, 3]))
def test_no_sentence_of_an_ablation_is_without_its_control(data, one_seed, control, placebo, gap):
    arms = load_arms()
    names = ["baseline", "llm", "text"] + ["neighbours"] * control + ["placebo"] * placebo
    pairs = [(name, "baseline") for name in names[1:]]
    pairs += [(arm, other) for arm in ("llm", "text") for other in names[3:] if (arm, other) != ("text", "placebo")]
    lifts = data.draw(lifts_of_arms(pairs, ("overall", "never_ad"), seeds=1 if one_seed else 2))
    best = {"llm": "neighbours", "text": "neighbours"} if control else {}
    gaps = {"llm": CoverageGap(0.5, "a cause", "a fix")} if gap == 1 else {}
    some = Arms(arms=tuple(map(arms.find, names)))
    outcome = judge(lifts, some, best_controls=best, gaps=gaps)
    told = [outcome.sentence, *outcome.details]
    counts = {"test": {"users": 9, "slates": 9}}
    about = {"frame_facts": {}, "gaps": gaps_to_json(gaps), "splits": counts}
    lifts += [replace(one, metric="conversions_5") for one in lifts]
    result = AblationResult(some, lifts, outcome, best.get("llm"), None, about, best_controls=best)
    lines = dict(opening_lines(Evidence(result)))
    sentences_are_whole([*told, lines["Ranking"]], one_seed=one_seed, control=control, placebo=placebo)
    # the verdict is about AUC here: of conversions nothing is called clear
    sentences_are_whole([lines["End to end"]], one_seed=one_seed, control=control, placebo=placebo, decides=False)
    # the second treatment has no placebo of its own
    sentences_are_whole(outcome.sentences[1:], one_seed=one_seed, control=control, placebo=False)
    if one_seed:
        assert not re.search(r"\bclear\b", outcome.headline.lower())
    assert outcome.headline.startswith("LLM priors: ")


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_no_sentence_of_a_two_by_two_is_without_its_control(data, one_seed, control, placebo, decides):
    references = {CONTROL: "neighbours"} if control else {}
    references |= {PLACEBO_ROLE: "placebo"} if placebo else {}
    arms = (None, "text", *references.values())
    pairs = [(cell(a, of), cell(b, of)) for of in arms for a, b, _ in EFFECTS]
    pairs += [
        (addition(a, b, arm), addition(a, b, of))
        for arm in (None, "text")
        for of in references.values()
        for a, b, _ in EFFECTS
    ]
    lifts = data.draw(lifts_of_arms(pairs, metric="conversions_5", seeds=1 if one_seed else 2))
    by_cell = dict.fromkeys((BOTH, RETRIEVAL, "ranker"), references)
    about = {"slots": 5, "k": 15, "arm": "llm", "treatments": ["llm", "text"], "labels": {"llm": "LLM priors"}}
    about |= {"references": {"llm": by_cell, "text": by_cell}, "decide_on": "conversions_5" if decides else "auc"}
    short = TwoByTwo(lifts, about | {"gaps": {"llm": {"share": 0.5, "cause": "a cause", "fix": "a fix"}}})
    assert all("undefined: only 50 % of the impressions have this prior" in text for text in short.sentences())
    result = TwoByTwo(lifts, about)
    told = [*result.sentences(), *result.others()]
    sentences_are_whole(told, one_seed=one_seed, control=control, placebo=placebo, decides=decides)
    assert all("With LLM priors in r" in text for text in result.sentences())
    assert len(result.others()) == 1
    assert not re.search("not compared with it", " ".join(told))
    assert result.claim(BOTH, NEITHER).headline.startswith("LLM priors: ")


@settings(max_examples=30, deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_no_sentence_of_candidates_is_without_its_control(data, control, placebo):
    import pandas as pd

    names = ["llm"] + ["neighbours"] * control + ["placebo"] * placebo
    rows = []
    for name in names:
        value, wide = data.draw(NUMBERS), data.draw(WIDTHS)
        gain = (value, value - wide, value + wide, 50.0, 9.0, 1.0, 100.0, 0.1, 10.0)
        for split in ("valid", "test"):
            rows += [[name, split, 0.0, 0.5, 0.0, 0.0, 0.0, 50.0, 0.0, 0.0, 100.0, 0.1, 10.0]]
            rows += [[name, split, 0.5, 0.5 + value, *gain]]
    beside = {"llm": {r: n for r, n in (("control", "neighbours"), ("placebo", "placebo")) if n in names}}
    about = {"k": 20, "beside": beside, "controls": ["neighbours"] * control}
    curve = CandidateCurve(pd.DataFrame(rows, columns=_COLUMNS), dict.fromkeys(names, 0.5), about)
    sentences_are_whole([curve.sentence("llm")], one_seed=True, control=control, placebo=placebo)
    assert curve.told == names[: 1 + control]


def test_a_control_of_a_kind_stands_beside_every_claim():
    """The network without pre-training: where it does as well nothing is clear; where there is none, that is said."""
    arms = load_arms()
    some = Arms(arms=tuple(map(arms.find, ("baseline", "neighbours_pair", "text_twin_pair", "text_pair"))))
    base = [
        lift("text_pair", "baseline", 0.005, 0.003, 0.007),
        lift("text_twin_pair", "baseline", 0.004, 0.002, 0.006),
        lift("neighbours_pair", "baseline", 0.001, -0.001, 0.003),
        lift("text_pair", "neighbours_pair", 0.004, 0.002, 0.006),
    ]
    expected, best = {"text_pair": ["random_weights", "lexical"]}, {"text_pair": "neighbours_pair"}
    for over, kind in (((0.001, -0.001, 0.003), "win_not_over_control"), ((0.001, 0.0005, 0.002), "win")):
        lifts = Lifts([*base, lift("text_pair", "text_twin_pair", *over)])
        outcome = judge(lifts, some, best_controls=best, expected=expected)
        assert outcome.kind == kind
        same = "but not over its random-weight control: the same network without pre-training may do as well"
        assert (same in outcome.sentence) is (kind != "win")
        assert "its random-weight control: +0.0040 [+0.0020, +0.0060], LLM text prior by" in outcome.sentence
        assert outcome.sentence.endswith("its lexical control: not measured).")
