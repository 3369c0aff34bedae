"""The table of the year: each line says what was asked for and what came out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.scale.rows import Rows
from benchmarks.year.calendar import Calendar
from benchmarks.year.experiment import LIFT, Announced
from benchmarks.year.project import VIEW
from benchmarks.year.traffic import Answers
from benchmarks.year.year import Record
from ranking.experiment.exposures import read_exposures

#: Before, the publications have not got as many snapshots yet as stay.
_WEEKS_UNTIL_FULL = 20
#: The context that requests bring.
FEATURE = "context_placement"


def check_requests(rows: Rows, answers: Answers, exposures: Path) -> None:
    """No request failed, no answer was mixed, no exposure is lost."""
    rows.at_most("failed requests", len(answers.failed), 0)
    rows.at_most("answers whose prior, snapshot and catalog are of two publications", len(answers.mixed), 0)
    logged = Counter(record["exposure_id"] for record in read_exposures(exposures))
    lost = sum(row[0] not in logged for row in answers.rows)
    rows.at_most("acknowledged exposures that are not in the log", lost, 0)
    rows.at_most(
        "exposures that are in the log twice, or were not logged", logged.total() - len(logged) + answers.unlogged, 0
    )
    rows.note("requests; p50 and p99 of the client", f"{answers.asked:,}")
    rows.note("  ms", f"{np.percentile(answers.ms, 50):.1f}, {np.percentile(answers.ms, 99):.1f}")
    rows.note("answers that lacked something", f"{sum(answers.degraded.values()) / max(1, answers.asked):.2%}")
    for reason, count in answers.degraded.most_common(5):
        rows.note(f"  {reason}", f"{count:,}")
    for sentence in (answers.failed + answers.mixed)[:5]:
        print(f"    {sentence}")


def check_faults(rows: Rows, record: Record, calendar: Calendar) -> None:
    """Kills, the damaged publication, bad rankers, refreshes that failed on other days."""
    rows.at_most("days whose refresh failed, of those without a fault", len(record.failed_refreshes), 0)
    for day, text in list(record.failed_refreshes.items())[:3]:
        print(f"    day {day}: {text[-600:]}")
    rows.at_most("rankers, predictors, audits and reports that failed", len(record.failed_steps), 0)
    for sentence in record.failed_steps[:5]:
        print(f"    {sentence}")
    killed = len(record.kills) - len(record.not_recovered)
    rows.at_least("kills that the next day's refresh recovered from by itself", killed, len(calendar.kills))
    for sentence in [*(f"day {day} {text}" for day, text in record.kills.items()), *record.not_recovered]:
        print(f"    {sentence}")
    refused = ": " in record.damaged and calendar.corrupt + 1 not in record.failed_refreshes
    rows.check("a damaged publication is refused by code, and put right", str(refused), "True", refused)
    print(f"    {record.damaged}")
    bad = sum(ran.code == 3 for ran in record.bad.values())
    rows.check("bad rankers refused", f"{bad} of {len(record.bad)}", "2 of 2", bad == len(record.bad) == 2)
    for name, ran in record.bad.items():
        print(f"    {name}: {ran.output.splitlines()[-1][:200]}")
    promoted = [day for day, ran in record.offered.items() if ran.code == 0]
    rows.note("rankers promoted of those offered", f"{len(promoted)} of {len(record.offered)}")
    rows.note("predictors fitted, catalogs served", f"{len(record.refits)}, {len(record.catalogs)}")
    reloads = record.reloads
    rows.at_most("promoted rankers that the service did not take in", reloads["refused"], 0)


def check_sizes(rows: Rows, record: Record) -> None:
    """What grows with the year: slopes over its second half, in percent of what is there, a week."""
    sizes = record.sizes[len(record.sizes) // 3 :]
    if len(sizes) < 3:
        return
    days = np.array([one["day"] for one in sizes])
    bounds = {"store": 0.005, "redis": 0.005, "tables": None, "exposures": None}
    for name, bound in bounds.items():
        values = np.array([one[name] for one in sizes])
        slope = float(np.polyfit(days, values, 1)[0])
        what = f"{name}: {values[0]:.1f} to {values[-1]:.1f} MB; growth a day"
        if bound is None or len(record.sizes) < _WEEKS_UNTIL_FULL:
            rows.note(f"{what} (the log's own)" if bound is None else f"{what}, while it fills", f"{slope:.3f} MB")
        else:
            rows.at_most(f"{what} of its size", slope / values.mean(), bound)
    service = [one["service"] for one in sizes]
    rows.at_most(
        f"memory of the service, {service[0]:.0f} to {service[-1]:.0f} MB: growth", service[-1] / service[0] - 1, 0.05
    )


def check_audit(rows: Rows, record: Record, wanted: int) -> None:
    """Every cell that a ranker read, against the frame."""
    exposures = sum(one["exposures"] for one in record.audits)
    cells, unequal = (sum(one[name] for one in record.audits) for name in ("cells", "unequal"))
    causes: Counter[str] = Counter()
    for one in record.audits:
        for column in one["columns"]:
            causes.update(column["causes"])
    skew = causes.pop("other values at the same time", 0)
    rows.at_least("exposures audited", exposures, wanted)
    rows.at_most(f"of {cells:,} cells, those with other values at the same time", skew, 0)
    rows.note("cells that are equal", f"{1 - unequal / max(1, cells):.4%}")
    for cause, count in causes.most_common(8):
        rows.note(f"  named: {cause}", f"{count:,}")
    for one in record.audits:
        for column in one["columns"]:
            if "other values at the same time" in column["causes"]:
                print(f"    {one['ranker']} {column['name']}: {column['causes']}, largest {column['largest']:.3g}")


def check_experiment(rows: Rows, announced: Announced, calendar: Calendar, nulls: list[int | None]) -> None:
    """The planted lift is found once it is there; the null replays are not announced."""
    text = "never" if announced.day is None else f"day {announced.day}"
    ok = announced.day is not None and not announced.before
    rows.check(f"lift of {LIFT:.0%} planted on day {calendar.lift}, announced", text, f"> day {calendar.lift}", ok)
    print("    " + "\n    ".join(announced.text.splitlines()[-6:]))
    false_alarms = sum(day is not None for day in nulls)
    rows.at_most(f"of {len(nulls)} null replays, looked at daily, announced", false_alarms / len(nulls), 0.05)


def check_drift(rows: Rows, record: Record, calendar: Calendar) -> None:
    """Both plants are called major, and nothing else ever is."""
    before = {day: names for day, names in record.drifts.items() if day < calendar.drift}
    after = {day: names for day, names in record.drifts.items() if day >= calendar.drift}
    feature = any(FEATURE in names for names in after.values())
    prior = any(VIEW in names for day, names in after.items() if day > calendar.other_prior)
    rows.check(f"drift of {FEATURE}, planted on day {calendar.drift}", str(feature), "found", feature)
    rows.check(f"drift of {VIEW}, planted on day {calendar.other_prior}", str(prior), "found", prior)
    other: Counter[str] = Counter()
    for names in before.values():
        other.update(list(names))
    for day, names in after.items():
        planted = {FEATURE} if day <= calendar.other_prior else {FEATURE, VIEW}
        other.update(name for name in names if name not in planted)
    rows.at_most("features and priors that were called major and were not planted", len(other), 0)
    for name, count in other.most_common(12):
        rows.note(f"  {name}, weeks", f"{count}")
