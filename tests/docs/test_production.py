"""The production guide, run as it stands: its bash blocks in order, in one shell, in a project on tiny tables.

What differs here (folder, port, Redis, users) comes through the variables that the guide reads itself. A day passes
between setting the project up and the first refresh, so that there is something to refresh. Commands are forks of one
process that has imported what they share (`tests.preloaded`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml

from advprior.pipeline.project import lay_out
from tests.docs.markdown import DOCS, split
from tests.ports import free_port
from tests.preloaded import preloaded, write_command
from tests.service.workspaces import redis_server
from tests.tiny import START, WEEK, tiny_tables
from tests.tiny_llm import write_tiny_llm

GUIDE = DOCS / "production.md"
pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(shutil.which("curl") is None or shutil.which("flock") is None, reason="the guide uses curl"),
]

#: The guide begins at a finished project: the commands of its README. Those before the frame need torch and not Feast,
#: so they share a process of their own.
_SETUP = """
import sys, warnings
warnings.simplefilter("ignore")
from advprior.cli import cli
for line in sys.stdin.read().splitlines():
    cli.main(args=line.split(), standalone_mode=False)
"""
_COMMANDS = """
data check --mapping mapping.yaml --out tables
finetune --tables tables --out models/llm --config configs/llm.yaml
export models/llm
score models/llm --tables tables --out priors/llm
publish priors/llm --repo feature_repo
rank features --tables tables --repo feature_repo
"""
_THEN = """
feast -c feature_repo apply
advprior rank frame --tables tables --repo feature_repo --out frame
advprior rank train --frame frame --service ranker_with_priors_v1 --arms configs/arms.yaml --out ranker
advprior rank train --frame frame --service ranker_baseline_v1 --arms configs/arms.yaml --out ranker_baseline
"""
USERS = [f"u{i:03d}" for i in range(24)]


def write_raw(folder: Path, until: datetime, now: datetime) -> Path:
    """The tiny tables, moved so that week 29 ends a day ago; rows from `until` on are not there yet."""
    folder.mkdir(exist_ok=True)
    moved = now - timedelta(days=1) - (START + 29 * WEEK)
    for name, table in tiny_tables().items():
        if "timestamp" in table:
            table["timestamp"] = table["timestamp"] + moved
            table = table[table["timestamp"] < until]
        table.to_parquet(folder / f"{name}.parquet", index=False)
    at = START + moved
    mapping = {
        "folder": str(folder),
        "tables": {name: {"file": f"{name}.parquet"} for name in ("users", "advertisers", "ads", "events")},
        "time_plan": {
            name: (at + weeks * WEEK).isoformat()
            for name, weeks in (("finetune_end", 10), ("train_end", 20), ("valid_end", 24))
        },
    }
    mapping["tables"]["users"]["profile"] = {"age": "profile_age", "region": "profile_region"}
    mapping["tables"]["impressions"] = {
        "file": "impressions.parquet",
        "columns": {"impression_id": "impression_id"},
        "context": {"placement": "context_placement"},
    }
    mapping["time_plan"] |= {"start": at.isoformat()}
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return path


def edit(path: Path, **changes: object) -> None:
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(config))


def in_project(project: Path, commands: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SETUP],
        cwd=project,
        input=commands.strip(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def finished_project(root: Path, now: datetime, path: str) -> Path:
    """A project as it stands after steps 1 to 5 of its README, with the rows of two days ago."""
    project = root / "project"
    lay_out(project)
    base = write_tiny_llm(root / "base")
    edit(project / "configs" / "llm.yaml", base=str(base), layers=3, tuned_layers=1, training={"epochs": 1, "rank": 4})
    edit(
        project / "configs" / "arms.yaml", ranker={"max_rounds": 20, "patience": 5, "min_data_in_leaf": 5, "threads": 1}
    )
    shutil.copy(write_raw(root / "raw", now - timedelta(days=2), now), project / "mapping.yaml")
    in_project(project, _COMMANDS)
    for command in _THEN.strip().splitlines():
        done = subprocess.run(
            ["sh", "-c", command], cwd=project, env={**os.environ, "PATH": path}, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    return project


def commands_on_path(folder: Path, server: Path) -> str:
    """A PATH on which `advprior`, `feast` and `python` are this environment's, whether or not it is activated."""
    folder.mkdir()
    for name in ("advprior", "feast"):
        write_command(folder / name, name, server)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -W ignore "$@"\n')
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def write_outcomes(path: Path, now: datetime) -> None:
    """Purchases of every other user, before the experiment and after it."""
    rows = [(u, now + timedelta(days=d)) for i, u in enumerate(USERS) for d in (-7, -3, 1) if (i + d) % 3]
    pd.DataFrame(rows, columns=["user_id", "timestamp"]).to_parquet(path)


def script_of(page: Path, *, redis: bool) -> str:
    """The blocks of a page as one script that stops at the first failure and says which block it was in."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"]
    for block in split(page.read_text())[0]:
        if block.language != "bash" or ("redis" in block.words and not redis):
            continue
        lines += [f"echo '### {page.name}:{block.line}' >&2", block.text]
    return "\n".join(lines)


@dataclass
class Ran:
    project: Path
    root: Path
    output: str


def run_guide(root: Path, server: Path, redis: str | None) -> Ran:
    now = datetime.now(UTC).replace(microsecond=0)
    path = commands_on_path(root / "bin", server)
    project = finished_project(root, now, path)
    write_raw(root / "raw", now, now)  # the days since
    write_outcomes(root / "outcomes.parquet", now)
    script = root / "guide.sh"
    script.write_text(script_of(GUIDE, redis=redis is not None))
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(root / "cache"),
        "PROJECT": str(project),
        "PORT": str(free_port(2)),  # the next one is for the service of the replay
        "SOME_USERS": " ".join(USERS),
        "OUTCOMES": str(root / "outcomes.parquet"),
        "COPY": str(root / "copy"),
        "THREADS": "1",
        **({"REDIS_URL": redis} if redis else {}),
    }
    with open(root / "out.txt", "w") as out:
        shell = subprocess.Popen(
            ["bash", str(script)],
            cwd=root,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(1200)
        finally:
            _stop_all(shell.pid)
    output = (root / "out.txt").read_text()
    assert code == 0, _end_of(output) + "".join(
        f"\n{log.name}: {_end_of(log.read_text())}" for log in project.glob("*.log")
    )
    return Ran(project, root, output)


def _end_of(text: str) -> str:
    """The last lines without Feast's own notes, of which each command writes some thirty."""
    return "\n".join([line for line in text.splitlines() if "feast.infra.registry" not in line])[-3000:]


def _stop_all(session: int) -> None:
    """What the shell has left behind, if it did not come to its end."""
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("guide")
    with preloaded(root) as server:
        if shutil.which("redis-server") is None:
            return run_guide(root, server, None)
        pytest.importorskip("redis")
        (root / "redis").mkdir()
        with redis_server(root / "redis") as redis:
            # a read that waits for a busy machine is no dead store
            return run_guide(root, server, f"localhost:{redis.port},socket_timeout=60,socket_connect_timeout=60")


def test_the_guide_runs(ran: Ran) -> None:
    blocks = [block for block in split(GUIDE.read_text())[0] if block.language == "bash"]
    begun = ran.output.count("### production.md:")
    assert begun == sum(shutil.which("redis-server") is not None or "redis" not in block.words for block in blocks)


def test_the_refresh_scored_what_is_new_only(ran: Ran) -> None:
    first = sorted((ran.project / "refresh" / "llm").glob("2*/manifest.json"))[0]
    facts = json.loads(first.read_text())["facts"]
    assert facts["snapshots"] == 1
    earlier = json.loads((ran.project / "priors" / "llm" / "manifest.json").read_text())["facts"]
    assert facts["last_snapshot"] > earlier["last_snapshot"]


def test_every_asked_user_was_answered_with_nothing_missing(ran: Ran) -> None:
    answers = [json.loads(line) for line in ran.output.splitlines() if line.startswith('{"request_id"')]
    assert len(answers) == len(USERS)
    assert {tuple(answer["degraded"]) for answer in answers} == {()}
    assert all(len(answer["slots"]) == 3 and answer["exposure"]["logged"] for answer in answers)
    assert {answer["arm"] for answer in answers} == {"control", "treatment"}
    assert all((answer["prior"] is not None) == (answer["arm"] == "treatment") for answer in answers)


def test_the_rollback_went_back_and_the_service_answered_on(ran: Ran) -> None:
    assert "rank rollback: prior_llm serves 40 rows" in ran.output
    assert ran.output.count("refresh: done") == 1


def test_the_readout_has_both_arms(ran: Ran) -> None:
    readout = json.loads((ran.project / "readout.json").read_text())
    assert set(readout["users"]) == {"control", "treatment"}
    assert sum(readout["users"].values()) == len(USERS)


def test_a_copy_did_not_take_the_originals_tables(ran: Ran) -> None:
    """The last answer came after the copy was applied: it lacks nothing, so the original's rows are still there."""
    assert (ran.root / "copy" / "feature_repo" / "data" / "registry.db").is_file()
    last = json.loads((ran.project / "answer.json").read_text())
    assert last["user_id"] == USERS[0]
    assert last["degraded"] == []


def test_nothing_was_left_running(ran: Ran) -> None:
    pid = int((ran.project / "serve.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
