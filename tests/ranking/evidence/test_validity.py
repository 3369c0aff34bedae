"""The evidence on worlds whose truth is known: a few replays of what `benchmarks.validity` does by the hundred."""

from benchmarks.validity import replays, world
from ranking.frame.checks import check_golden_features


def test_intervals_hold_zero_when_priors_say_nothing():
    found = replays(24, 0.0, 0, 200)
    for arm, rows in found.items():
        held = ((rows[:, 1] <= 0) & (rows[:, 2] >= 0)).sum()
        assert held >= 20, (arm, held)  # fewer than 20 of 24 at 95 %: once in 150


def test_a_planted_signal_is_found_with_its_sign_and_its_placebo_is_not():
    found = replays(6, 0.8, 100, 200)
    assert (found["llm"][:, 1] > 0).all()
    assert (found["placebo"][:, 1] <= 0).sum() >= 5


def test_a_planted_leak_is_refused():
    frame = world(0, 0.0)
    label = frame["label"].to_numpy()
    honest = frame[["history_advertiser_all", "ad_rate"]]
    assert check_golden_features(honest, label) == []
    refused = check_golden_features(honest.assign(history_leak=label + 0.01 * frame["ad_rate"]), label)
    assert [(finding.code, finding.severity) for finding in refused] == [("RNK007", "error")]
