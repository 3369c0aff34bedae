"""What conversions cost, by hand arithmetic: hours, slates, break-even values, and the words for each case."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advprior.store.project_files import DECIDE_ON
from ranking.evidence.claims import Beside, Claim
from ranking.evidence.deciding import deciding_metric, metric_named, metrics_at
from ranking.evidence.lift import Lift
from ranking.evidence.worth import Hours, Price, Traffic, break_even, refresh_hours, traffic_of, worth_text
from tests.ranking.frames import PLAN

TRAFFIC = Traffic(slates=2000, users=200, days=70.0, every=7.0)  # ten slates a user in ten refreshes: one each


def change(difference, low, high, arm="llm"):
    return Lift(arm, "neither", "conversions_5", "overall", 0.5, 0.5, difference, 0.0, low, high, 1000, seeds=3)


def text(lift, price=None, hours=None):
    control = Beside("neighbour prior", change(0.0005, -0.001, 0.002, "neighbours"), lift)
    spent = {"llm": Hours(50.0, at_most=True), "neighbours": Hours(0.1)} if hours is None else hours
    return worth_text(Claim("LLM priors", lift, control), spent, ("llm", "neighbours"), TRAFFIC, price)


def test_a_clear_gain_has_a_value_at_which_it_pays():
    """1,000 conversions for 50 hours at 0.05: each must be worth 2.5 / 1,000."""
    told = text(change(0.001, 0.0005, 0.002), Price(0.05))
    assert told.startswith("LLM priors: +1,000 [+500, +2,000] conversions per million slates (best control, neighbour")
    assert "neighbour prior: +500 [−1,000, +2,000], for 6.0 CPU-minutes)" in told
    assert "for at most 50.0 CPU-hours per million users at each refresh, at most 50.0 CPU-hours per million" in told
    assert "200 scored users saw 2,000 slates, 1 each between two refreshes (every 7 days)" in TRAFFIC.text()
    assert "At 0.05 USD a CPU-hour that is 2.5 USD: it pays where a conversion is worth more than 0.0025 USD" in told
    assert "(0.0013 USD at the interval's upper end, 0.005 USD at its lower)" in told


@pytest.mark.parametrize(
    ("lift", "words"),
    [
        (change(0.001, -0.001, 0.002), "0.0013 USD at the interval's upper end, at its lower end no value pays"),
        (
            change(-0.001, -0.002, 0.001),
            "no value of a conversion pays for it; at the interval's upper end one of 0.002",
        ),
        (change(-0.001, -0.002, -0.0005), "no value of a conversion pays for it, even at the interval's upper end"),
    ],
)
def test_what_is_not_clear_is_said_as_such(lift, words):
    assert words in text(lift, Price(0.05))


def test_what_is_unknown_is_asked_for():
    assert "set price: {cpu_hour: 0.05, currency: USD} in advprior.yaml" in text(change(0.001, 0.0, 0.002))
    assert "name the scoring run" in text(change(0.001, 0.0, 0.002), Price(0.05), {"llm": None})
    on_gpu = {"llm": Hours(2.0, 4.0)}
    assert "set price: {gpu_hour: " in text(change(0.001, 0.0, 0.002), Price(0.05), on_gpu)
    told = text(change(0.001, 0.0005, 0.002), Price(0.05, 2.0, "EUR"), on_gpu)
    assert "4.0 GPU-hours and 2.0 CPU-hours" in told
    assert "At 0.05 EUR a CPU-hour and 2 EUR a GPU-hour that is 8.1 EUR" in told


def test_a_network_costs_by_the_user_and_others_by_the_snapshot():
    facts = {"users": 200, "rows": 7000, "forwarded": 212, "score_cpu_seconds": 72.0, "score_seconds": 36.0}
    assert refresh_hours(facts) == Hours(pytest.approx(100.0), 0.0, True)
    assert refresh_hours({**facts, "carried": 150, "forwarded": 50}).cpu == pytest.approx(400.0)  # the rest was carried
    assert refresh_hours({**facts, "forwarded": 0}) == Hours(pytest.approx(72 / 7000 * 1e6 / 3600), 0.0, False)
    assert refresh_hours({**facts, "provider": "CUDAExecutionProvider"}).gpu == pytest.approx(50.0)
    assert refresh_hours({"users": 200, "rows": 7000}) is None
    run = {"cpu_seconds": 36.0, "seconds": 1.0, "facts": {"users": 100, "rows": 10, "forwarded": 100}}
    assert refresh_hours(facts, run).cpu == pytest.approx(100.0)


def test_slates_are_counted_over_every_scored_user():
    about = {"frame_facts": {"time_plan": PLAN.to_json()}, "splits": {"test": {"slates": 700, "users": 100}}}
    days = (PLAN.end - PLAN.valid_end).days
    assert traffic_of(about, 140) == Traffic(700, 140, days, PLAN.snapshot_every.days)
    assert traffic_of(about, 140).between == pytest.approx(5 * PLAN.snapshot_every.days / days)
    assert traffic_of(about, None).users == 100
    assert traffic_of({**about, "frame_facts": {}}, 140) is None
    cuts = [{"test": "2024-01-01T00:00:00+00:00 to 2024-01-08T00:00:00+00:00"}] * 3
    assert traffic_of({**about, "cutoffs": cuts}, 140).days == 21


@given(st.floats(0.01, 1e6), st.floats(-0.1, 0.1), st.floats(1e-6, 0.1))
def test_a_better_change_never_needs_a_dearer_conversion(cost, difference, wide):
    value, best, worst = break_even(cost, change(difference, difference - wide, difference + wide))
    assert 0 < best <= value <= worst <= inf
    more, *_ = break_even(cost, replace(change(difference, 0, 0), difference=difference + wide))
    assert more <= value


def test_every_metric_that_can_be_decided_on_is_measured():
    import numpy as np

    named = [deciding_metric(name, 3, np.arange(4)) for name in DECIDE_ON]
    assert set(named) == set(metrics_at(3))
    assert [metric_named(metric.name) for metric in named] == named
