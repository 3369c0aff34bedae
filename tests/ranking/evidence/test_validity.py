"""The evidence on worlds whose truth is known: a few replays of what `benchmarks.validity` does by the hundred."""

from benchmarks.validity import holds, replays, world, worlds
from ranking.frame.checks import check_golden_features


def test_intervals_hold_zero_when_priors_say_nothing():
    lifts = replays(worlds(12, 0, 0.0), 2, 60)
    assert len(lifts) == 14  # pairs of arms by metric, effects of the two-by-two, and those over its placebo's
    for name, rows in lifts.items():
        assert holds(rows, 0.0).sum() >= 9, name  # fewer than 9 of 12 at 95 %: once in 500


def test_a_planted_signal_is_found_with_its_sign_and_its_placebo_is_not():
    lifts = replays(worlds(3, 100, 0.8), 3, 60)
    assert (lifts["llm − baseline, auc"][:, 1] > 0).all()
    assert (lifts["llm − placebo, auc"][:, 1] > 0).all()
    assert (lifts["both − neither, conversions_2"][:, 0] > 0).all()
    assert (lifts["placebo − baseline, auc"][:, 1] <= 0).sum() >= 2


def test_a_planted_leak_is_refused():
    frame = world(0, 0.0)
    label = frame["label"].to_numpy()
    honest = frame[["history_advertiser_all", "ad_rate"]]
    assert check_golden_features(honest, label) == []
    refused = check_golden_features(honest.assign(history_leak=label + 0.01 * frame["ad_rate"]), label)
    assert [(finding.code, finding.severity) for finding in refused] == [("RNK007", "error")]
