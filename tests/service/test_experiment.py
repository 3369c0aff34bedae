"""Assignment, the exposure log, and a readout that finds what was planted and nothing else."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from advprior.store.errors import AdvpriorError
from ranking.cli.experiment import readout as readout_command
from ranking.experiment.assignment import EVERYBODY, Experiment, Per, ServedArm, load_experiment
from ranking.experiment.exposures import ExposureLog, read_exposures
from ranking.experiment.readout import cuped, read_out, sample_ratio
from ranking.experiment.simulation import ClickModel, click
from ranking.service.answers import RequestInfo, log_exposure
from ranking.service.slate import Query, Slate
from tests.service.live import engine_for
from tests.service.workspaces import NOW, SNAPSHOT, FixedClock, Project, coming_week

YAML = """
name: try
salt: s1
arms:
  - {name: control, share: 0.5, priors: false}
  - {name: treatment, share: 0.5, priors: true}
"""
HALVES = Experiment(
    name="try",
    salt="s1",
    arms=(ServedArm(name="control", share=1, priors=False), ServedArm(name="treatment", share=1, priors=True)),
)
T0 = datetime(2024, 6, 1, tzinfo=UTC)


def exposed(users: list[str], experiment: Experiment = HALVES) -> list[dict[str, object]]:
    return [
        {"user_id": u, "arm": experiment.arm_of(u).name, "time": T0.isoformat(), "degraded": [], "experiment": "try"}
        for u in users
    ]


def outcomes_of(users: list[str], counts: np.ndarray, start: datetime = T0) -> pd.DataFrame:
    who = np.repeat(np.array(users, dtype=object), counts)
    when = pd.Series(pd.to_datetime([start + timedelta(hours=1)] * len(who), utc=True))
    return pd.DataFrame({"user_id": who, "timestamp": when})


# -- assignment ----------------------------------------------------------------------------------------------------


def test_arms_are_dealt_by_share_and_stay() -> None:
    experiment = Experiment(
        name="x",
        salt="s",
        arms=tuple(ServedArm(name=n, share=s, priors=False) for n, s in (("a", 1), ("b", 2), ("c", 7))),
    )
    dealt = [experiment.arm_of(f"user {i}").name for i in range(20_000)]
    found = {name: dealt.count(name) / 20_000 for name in "abc"}
    assert found == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7}, abs=0.01)
    assert dealt[:50] == [experiment.arm_of(f"user {i}").name for i in range(50)]
    other = experiment.model_copy(update={"salt": "t"})
    moved = np.mean([other.arm_of(f"user {i}").name != dealt[i] for i in range(5000)])
    assert moved == pytest.approx(1 - 0.01 - 0.04 - 0.49, abs=0.03)  # a new salt deals anew, independently


def test_an_experiment_file(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(YAML)
    assert load_experiment(path).arms == load_experiment(path).arms
    assert load_experiment(None) is EVERYBODY
    for text in (YAML.replace("0.5", "-1", 1), "a: [", YAML.replace("treatment", "control"), "name: x\n"):
        path.write_text(text)
        with pytest.raises(AdvpriorError, match="CFG001"):
            load_experiment(path)


# -- the log -------------------------------------------------------------------------------------------------------


def test_the_log_rotates_and_is_read_whole(tmp_path: Path) -> None:
    log = ExposureLog(tmp_path, fsync="always", max_bytes=500)
    for i in range(200):
        log.append({"i": i})
    log.close()
    assert len(list(tmp_path.glob("*.jsonl"))) > 2
    assert [record["i"] for record in read_exposures(tmp_path)] == list(range(200))


def test_a_killed_process_loses_nothing_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        log = ExposureLog(tmp_path, fsync="never")
        for i in range(50):
            log.append({"i": i})
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    path = next(tmp_path.glob("*.jsonl"))
    with path.open("ab") as handle:
        handle.write(b'{"i": 5')
    assert [record["i"] for record in read_exposures(tmp_path)] == list(range(50))


def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path: Path) -> None:
    """A limit on file size stands for a full disk: the write stops in the middle of a line."""
    log = ExposureLog(tmp_path, fsync="never")
    log.append({"i": 0, "pad": "x" * 300})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match=r"part of the line|too large"):
                log.append({"i": 1, "pad": "x" * 300})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    log.append({"i": 2})
    log.close()
    assert [record["i"] for record in read_exposures(tmp_path)] == [0, 2]


# -- the readout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lift", [0.0, 0.10])
def test_a_planted_lift_is_inside_its_interval_as_often_as_said(lift: float) -> None:
    rng = np.random.default_rng(1)
    users = [f"u{i}" for i in range(600)]
    treated = np.array([HALVES.arm_of(u).name == "treatment" for u in users])
    covered, shorter = 0, []
    for _ in range(40):
        taste = rng.gamma(2.0, 2.0, len(users))
        past = outcomes_of(users, rng.poisson(taste), T0 - timedelta(days=3))
        now = outcomes_of(users, rng.poisson(taste * np.where(treated, 1 + lift, 1.0)))
        found = read_out(exposed(users), pd.concat([past, now]), HALVES, pre_days=7)
        plain, adjusted = found.effects["treatment"], found.adjusted["treatment"]
        assert plain.lift is not None
        assert adjusted.lift is not None
        covered += adjusted.lift.low <= lift <= adjusted.lift.high
        shorter.append((adjusted.lift.high - adjusted.lift.low) / (plain.lift.high - plain.lift.low))
    assert covered >= 34  # 95 % of 40, less three standard errors
    assert np.mean(shorter) < 0.85  # behaviour before explains a good part


def test_outcomes_per_exposure_hold_their_interval_whatever_users_come_how_often() -> None:
    """Users who come ten times as often are no noise: the same lift, a much shorter interval, and honest."""
    rng = np.random.default_rng(2)
    users, lift, covered = [f"u{i}" for i in range(400)], 0.1, 0
    treated = np.array([HALVES.arm_of(u).name == "treatment" for u in users])
    widths: dict[Per, list[float]] = {"user": [], "exposure": []}
    for _ in range(40):
        visits = 1 + rng.geometric(0.1, len(users))
        log = [record for record, often in zip(exposed(users), visits, strict=True) for _ in range(often)]
        made = outcomes_of(users, rng.poisson(visits * np.where(treated, 0.5 * (1 + lift), 0.5)))
        for per, of in widths.items():
            result = read_out(log, made, HALVES.model_copy(update={"per": per}))
            interval = result.effects["treatment"].lift
            assert interval is not None
            of.append(interval.high - interval.low)
            covered += per == "exposure" and interval.low <= lift <= interval.high
        assert result.mean["control"] == pytest.approx(0.5, abs=0.1)
    assert covered >= 34  # 95 % of 40, less three standard errors
    assert np.mean(widths["exposure"]) < 0.6 * np.mean(widths["user"])


def test_a_readout_as_of_a_day_knows_nobody_who_came_later() -> None:
    users = [f"u{i}" for i in range(80)]
    log = exposed(users)
    for record in log[40:]:
        record["time"] = (T0 + timedelta(days=5)).isoformat()
    counts = np.arange(80) % 3
    until = T0 + timedelta(days=2)
    early = read_out(log, outcomes_of(users, counts), HALVES, until=until)
    assert early.to_json() == read_out(log[:40], outcomes_of(users[:40], counts[:40]), HALVES).to_json()


def test_the_sample_ratio_fires_on_a_skew_and_on_nothing_else() -> None:
    rng = np.random.default_rng(0)
    users = [f"u{i}" for i in range(4000)]
    counts = rng.poisson(1.0, len(users))
    fair = read_out(exposed(users), outcomes_of(users, counts), HALVES)
    assert fair.trusted
    lost = [e for i, e in enumerate(exposed(users)) if e["arm"] == "control" or i % 5]  # a fifth of one arm is lost
    skewed = read_out(lost, outcomes_of(users, counts), HALVES)
    assert not skewed.trusted
    assert "NOT AS CONFIGURED" in skewed.text()
    shares = {"control": 0.5, "treatment": 0.5}
    draws = [int(rng.binomial(4000, 0.5)) for _ in range(2000)]
    fired = np.mean([sample_ratio({"control": n, "treatment": 4000 - n}, shares) < 0.0005 for n in draws])
    assert fired < 0.003


def test_users_of_two_arms_are_left_out_and_named() -> None:
    users = [f"u{i}" for i in range(50)]
    both = [*exposed(users), {**exposed(users[:1])[0], "arm": "control"}, {**exposed(users[:1])[0], "arm": "treatment"}]
    found = read_out(both, outcomes_of(users, np.ones(50, dtype=int)), HALVES)
    assert found.crossed_users == 1
    assert sum(found.users.values()) == 49
    assert "salt" in found.notes[-1]
    with pytest.raises(AdvpriorError, match="EXP001"):
        read_out([], outcomes_of(users, np.ones(50, dtype=int)), HALVES)
    with pytest.raises(AdvpriorError, match="EXP002"):
        read_out(both, pd.DataFrame({"user_id": []}), HALVES)


def test_outcomes_are_read_as_they_come_or_refused() -> None:
    """Whole numbers are ids as the log has them; what cannot be placed in time, or summed, is named."""
    users = [str(i) for i in range(60)]
    log, outcomes = exposed(users), outcomes_of(users, np.arange(60) % 3)
    numbers = outcomes.assign(user_id=outcomes.user_id.astype(np.int64))
    assert read_out(log, numbers, HALVES).to_json() == read_out(log, outcomes, HALVES).to_json()
    strangers = read_out(log, outcomes.assign(user_id="x" + outcomes.user_id), HALVES)
    assert "no outcome follows an exposure" in strangers.text()
    for wrong in (
        outcomes.assign(timestamp=outcomes.timestamp.dt.tz_localize(None)),
        outcomes.assign(timestamp=outcomes.timestamp.astype(str)),
        outcomes.assign(value="abc"),
        outcomes.assign(value=np.where(outcomes.index == 3, np.nan, 1.0)),
    ):
        with pytest.raises(AdvpriorError, match="EXP002"):
            read_out(log, wrong, HALVES)


def test_cuped_moves_no_mean_when_arms_were_alike() -> None:
    rng = np.random.default_rng(0)
    before, arm = rng.normal(size=1000), np.arange(1000) % 2
    outcome = before + rng.normal(size=1000) + arm
    clean = cuped(outcome, before, arm)
    assert clean.var() < outcome.var()
    assert clean.mean() == pytest.approx(outcome.mean())


# -- the loop ------------------------------------------------------------------------------------------------------


def test_the_readout_finds_the_lift_that_the_service_makes(project: Project, tmp_path: Path) -> None:
    """Simulated users click by a known taste, of which priors know more than history: slates differ, clicks follow."""
    counts = coming_week(project.tables, SNAPSHOT)
    taste = (counts.to_numpy() > 0) * 0.5 + 0.2
    model = ClickModel(counts.index.tolist(), counts.columns.tolist(), taste, scale=0.9, decay=0.7)
    arms = (ServedArm(name="control", share=1, priors=False), ServedArm(name="treatment", share=1, priors=True))
    experiment = Experiment(name="loop", salt="s", arms=arms)
    clock = FixedClock(NOW)
    engine = engine_for(project, clock=clock, experiment=experiment)
    engine.resources.refresh_ads()
    log = ExposureLog(tmp_path / "exposures")

    slates: dict[tuple[str, bool, str], Slate] = {}

    def slate_of(user: str) -> list[str | None]:
        key = engine.experiment.name, engine.experiment.arm_of(user).priors, user
        if key not in slates:  # the clock stands still: whoever comes again is shown the same
            slates[key] = engine.rank(Query(user, 3))
        slate = slates[key]
        log_exposure(log, slate, RequestInfo(user, "r", engine.experiment.name))
        return [advertiser for _, advertiser in slate.ads]

    def in_arm(priors: bool) -> float:
        one = (ServedArm(name="all", share=1, priors=priors),)
        engine.experiment = Experiment(name="truth", salt="s", arms=one)
        found = model.expected(slate_of)
        engine.experiment = experiment
        return found

    control, treatment = in_arm(False), in_arm(True)
    planted = treatment / control - 1
    assert planted > 0.02  # priors earn something here, and how much is known
    # before the experiment everybody sees what control sees: the pre-period
    engine.experiment = Experiment(name="before", salt="s", arms=(ServedArm(name="all", share=1, priors=False),))
    before = click(model, slate_of, NOW - timedelta(days=14), 10, 1, timedelta(days=1))
    engine.experiment = experiment
    after = click(model, slate_of, NOW, 15, 2, timedelta(0))
    outcomes, path = tmp_path / "outcomes.parquet", tmp_path / "experiment.yaml"
    pd.concat([before, after]).to_parquet(outcomes)
    path.write_text(YAML.replace("name: try", "name: loop").replace("s1", "s"))
    log.close()
    out = tmp_path / "readout.json"
    result = CliRunner().invoke(
        readout_command,
        [
            "--exposures",
            str(tmp_path / "exposures"),
            "--outcomes",
            str(outcomes),
            "--experiment",
            str(path),
            "--json",
            str(out),
        ],
    )
    assert result.exit_code == 0, result.output
    adjusted = json.loads(out.read_text())["adjusted"]["treatment"]["lift"]
    assert adjusted["low"] <= planted <= adjusted["high"]
    assert adjusted["low"] > 0
    assert adjusted["anytime_low"] < adjusted["low"]
    assert "at any look" in result.output


def test_the_readout_says_which_publication_ranked() -> None:
    users = [f"user {i}" for i in range(200)]
    used = {"predictor": "llm", "publication": "aa11", "snapshot": T0.isoformat(), "catalog_version": "v1"}
    later = used | {"publication": "bb22"}
    shown: list[dict[str, object]] = []
    for i, record in enumerate(exposed(users)):
        treated = record["arm"] == "treatment"
        shown.append(record | {"prior": (later if i % 2 else used) if treated else None})
    result = read_out(shown, outcomes_of(users, np.ones(200, dtype=int)), HALVES)
    treated = [u for u in users if HALVES.arm_of(u).name == "treatment"]
    odd = sum(HALVES.arm_of(u).name == "treatment" for u in users[1::2])
    assert result.publications["treatment"] == {"llm aa11": len(treated) - odd, "llm bb22": odd}
    assert result.publications["control"] == {"none": 200 - len(treated)}
    assert f"llm bb22 ({odd})" in result.text()
    assert "control was ranked with" not in result.text()
    old = read_out(exposed(users), outcomes_of(users, np.ones(200, dtype=int)), HALVES)
    assert set(old.publications["treatment"]) == {"unrecorded"}
    assert "was ranked with" not in old.text()


_FULL_DISK = """
import json, os, sys
from pathlib import Path
from ranking.experiment.exposures import ExposureLog, read_exposures
disk = Path(sys.argv[1])
filler = disk / "filler"
filler.write_bytes(b"x" * 24_000)
log, acknowledged, refused, errors = ExposureLog(disk / "log", fsync=sys.argv[2]), [], [], set()
def append(i):
    try:
        log.append({"exposure_id": i, "slots": "s" * 200})
        acknowledged.append(i)
    except OSError as error:
        refused.append(i)
        errors.add(error.errno)
for i in range(400):
    append(i)
full = len(refused)
filler.unlink()
for i in range(400, 440):
    append(i)
log.close()
found = sorted(record["exposure_id"] for record in read_exposures(disk / "log"))
lines = sum(path.read_bytes().count(b"{") for path in (disk / "log").iterdir())
print(json.dumps([full, len(refused), sorted(errors), found == acknowledged, lines == len(found)]))
"""


@pytest.mark.parametrize("fsync", ["interval", "always"])
def test_a_disk_that_is_really_full(tmp_path: Path, fsync: str) -> None:
    """A file system of 64 KiB of its own: what is acknowledged is there, and appending goes on once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(disk), sys.executable]
    if shutil.which("unshare") is None or subprocess.run([*command[:4], "true"], capture_output=True).returncode:
        pytest.skip("no mount of one's own is allowed here")
    done = subprocess.run([*command, _FULL_DISK, fsync], capture_output=True, text=True, check=True)
    full, refused, errors, kept, whole = json.loads(done.stdout)
    assert 0 < full == refused < 400
    assert errors == [errno.ENOSPC]
    assert kept
    assert whole  # no half line either
