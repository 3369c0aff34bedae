"""`data check` says what lies in each period of the time plan, and refuses a plan that cannot answer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from advprior.cli import main
from advprior.data.periods import SPLITS, check_periods, period_counts, periods_of, young_labels
from advprior.pipeline.project import PROJECT_FILE, lay_out
from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError
from tests.advprior.data.own_tables import refused, run, write_own
from tests.tiny import PLAN, tiny_tables

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def whole():
    return tiny_tables()


def test_counts_of_the_periods_are_those_of_the_rows(whole):
    counts = period_counts(whole, PLAN)
    shown = whole["impressions"]
    assert sum(counts[name]["impressions"] for name in SPLITS) == (shown["timestamp"] >= PLAN.finetune_end).sum()
    for name, (begin, end) in periods_of(PLAN).items():
        if name in SPLITS:
            rows = shown[(shown["timestamp"] >= begin) & (shown["timestamp"] < end)]
            assert counts[name]["positives"] == rows["label"].sum() > 0
            assert counts[name]["users"] == rows["user_id"].nunique()
    assert check_periods(counts, PLAN, 7 * DAY, "here") == []


def plan(*days: float, every: float = 7.0) -> TimePlan:
    return TimePlan(*(PLAN.start + day * DAY for day in days), snapshot_every=every * DAY)


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (plan(0, 70, 140, 168, 171), "everything is tested: 3.0 days"),
        (plan(0, 14, 70, 100, 210), "predictors learn: 14 days of labels"),
        (plan(0, 70, 140, 168, 210, every=100), "2 snapshots after finetune_end, 100 days apart"),
        (plan(0, 70, 75, 168, 210), "label_delay is 7 days, rankers learn from 5"),
    ],
)
def test_a_plan_that_can_answer_little_is_warned_of(whole, cuts, words):
    assert any(words in warning for warning in check_periods(period_counts(whole, cuts), cuts, 7 * DAY, "here"))


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (plan(0, 2, 70, 100, 210), "predictors learn: 2.0 days"),
        (plan(0, 70, 140, 168, 168.01), "everything is tested: 0 positives in 0 impressions"),
        (plan(-30, -10, 140, 168, 210), "predictors learn: no event"),
    ],
)
def test_a_plan_that_cannot_answer_is_refused(whole, cuts, words):
    with pytest.raises(AdvpriorError, match="DAT052") as caught:
        check_periods(period_counts(whole, cuts), cuts, 7 * DAY, "here")
    assert words in str(caught.value)


def test_no_positives_in_a_period_are_refused_before_anything_is_written(tmp_path, tables, capsys):
    shown = tables["impressions"]
    shown.loc[shown["timestamp"] >= PLAN.valid_end, "label"] = 0
    mapping = write_own(tmp_path / "own", tables)
    refused(capsys, tmp_path, mapping, "DAT052", "everything is tested: 0 positives in", "leave ads and impressions")


def test_it_is_printed_and_what_comes_next(tmp_path, tables, capsys, monkeypatch):
    mapping = write_own(tmp_path / "own", tables)
    _, out, _ = run(capsys, "--mapping", mapping)
    line = next(line for line in out.splitlines() if line.startswith("  rankers learn"))
    assert "impressions" in line
    assert "positives" in line
    assert "snapshots" in out
    assert "next:" not in out  # no project: nothing follows by itself
    lay_out(tmp_path / "mine")
    (tmp_path / "mine" / PROJECT_FILE).write_text(f"tables: {{mapping: {mapping}}}\n")
    monkeypatch.chdir(tmp_path)
    assert "next: advprior run mine" in run(capsys, "mine")[1]
    assert "next: advprior run mine" in run(capsys, "mine")[1]  # reused
    monkeypatch.chdir(tmp_path / "mine")
    assert run(capsys)[1].endswith("next: advprior run\n")
    with pytest.raises(SystemExit):
        main(["status"])
    assert "rankers are tuned" in capsys.readouterr().out


def test_labels_that_may_still_come_are_counted(whole):
    """Negatives within the delay of the newest row; a plan that ends before them has none."""
    shown, delay = whole["impressions"], 7 * DAY
    newest = max(whole[name]["timestamp"].max() for name in ("events", "impressions"))
    tested = (shown["timestamp"] >= PLAN.valid_end) & (shown["timestamp"] < PLAN.end)
    young = tested & (shown["timestamp"] > newest - delay) & (shown["label"] == 0)
    assert f"{young.sum():,} of {tested.sum():,} impressions have no positive label" in young_labels(whole, PLAN, delay)
    assert young_labels(whole, PLAN, 0 * DAY) == ""
    earlier = TimePlan(*(PLAN.start + day * DAY for day in (0, 70, 140, 168)), newest - delay)
    assert young_labels(whole, earlier, delay) == ""
    assert young_labels({**whole, "impressions": shown[:0]}, PLAN, delay) == ""


def test_a_delay_of_ones_own_warns_and_the_default_notes(tmp_path, tables, capsys):
    for name, stated in (("stated", {"label_delay": "3d"}), ("default", {})):
        _, out, err = run(capsys, "--mapping", write_own(tmp_path / name, tables, **stated))
        assert ("a label may still come" in err) is bool(stated)
        assert ("a label may still come" in out) is not bool(stated)
