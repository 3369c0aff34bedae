"""Run folders are whole or absent; a published link changes at once; a time plan keeps its order."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from advprior.store import versions
from advprior.store.contract import TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.runs import is_current, new_run, publish_version, read_manifest, run_key

KEY = run_key("step", {"a": 1}, {})


def write(out: Path, text: str, key: str = KEY, **options: bool) -> None:
    with new_run(out, "step", config={"a": 1}, inputs={}, key=key, **options) as run:
        (run.path / "data.txt").write_text(text)
        run.facts["length"] = len(text)


def test_a_finished_run_says_what_made_it(tmp_path: Path) -> None:
    write(tmp_path / "out", "hello")
    manifest = read_manifest(tmp_path / "out", step="step")
    assert manifest["facts"] == {"length": 5}
    assert manifest["outputs"]["data.txt"]["bytes"] == 5
    assert 0 <= manifest["cpu_seconds"] < 60
    assert is_current(tmp_path / "out", KEY)
    assert not is_current(tmp_path / "out", run_key("step", {"a": 2}, {}))
    (tmp_path / "out/data.txt").write_text("hell")
    assert not is_current(tmp_path / "out", KEY)


def test_a_failure_leaves_the_old_output_and_no_trace(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")

    def fail() -> None:
        with new_run(tmp_path / "out", "step", config={}, inputs={}, key="new") as run:
            (run.path / "data.txt").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "out/data.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_resumable_run_keeps_its_parts_for_the_same_key_only(tmp_path: Path) -> None:
    def interrupt(key: str) -> list[str]:
        with new_run(tmp_path / "out", "step", config={}, inputs={}, key=key, resume=True) as run:
            there = sorted(p.name for p in run.path.iterdir() if p.name != ".key")
            (run.path / f"part-{len(there)}").write_text("x")
            raise KeyboardInterrupt(there)

    leftovers = []
    for key in ("one", "one", "two"):
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupt(key)
        leftovers.append(caught.value.args[0])
    assert leftovers == [[], ["part-0"], []]


def test_an_unfinished_or_foreign_folder_is_not_read(tmp_path: Path) -> None:
    for folder, code in ((tmp_path / "none", "RUN001"), (tmp_path, "RUN001")):
        with pytest.raises(AdvpriorError) as caught:
            read_manifest(folder, fix="do this")
        assert caught.value.code == code
        assert caught.value.fix == "do this"
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(AdvpriorError, match="RUN002"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"step": "other"}))
    with pytest.raises(AdvpriorError, match=r"RUN003(.|\n)*other"):
        read_manifest(tmp_path, step="step")


def test_publishing_swaps_a_link_and_keeps_the_version_before(tmp_path: Path) -> None:
    link = tmp_path / "data" / "view"
    seen = []
    for number in range(4):
        write(tmp_path / "data/staged", f"version {number}", key=str(number))
        publish_version(tmp_path / "data/staged", link)
        assert link.is_symlink()
        assert (link / "data.txt").read_text() == f"version {number}"
        seen.append(link.resolve())
    assert not (tmp_path / "data/staged").exists()
    assert [p.exists() for p in seen] == [False, False, True, True]


def test_a_time_plan_is_in_order_and_survives_json() -> None:
    day = datetime(2024, 1, 1, tzinfo=UTC)
    moments = [day + timedelta(days=d) for d in (0, 15, 29, 36, 50)]
    plan = TimePlan(*moments)
    assert TimePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.snapshots() == [moments[1] + timedelta(days=7 * k) for k in range(5)]
    assert plan.feature_snapshots()[0] == day + timedelta(days=1)
    with pytest.raises(ValueError, match="start < finetune_end"):
        TimePlan(moments[1], *moments[1:])
    with pytest.raises(ValueError, match="zone"):
        TimePlan(*[m.replace(tzinfo=None) for m in moments])


def test_publishing_the_same_content_again_never_takes_the_live_version_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "data" / "view"
    removed: list[tuple[str, str]] = []
    real = shutil.rmtree

    def looking(path: Path, **options: bool) -> None:
        removed.append((Path(path).name, link.resolve().name))
        assert (link / "data.txt").is_file()
        real(path, **options)

    for text in ("before", "live"):
        write(tmp_path / "data/staged", text, key=text)
        publish_version(tmp_path / "data/staged", link)
    monkeypatch.setattr(shutil, "rmtree", looking)
    for _ in range(3):
        write(tmp_path / "data/staged", "live", key="live")
        publish_version(tmp_path / "data/staged", link)
        assert (link / "data.txt").read_text() == "live"
    assert len(removed) >= 3
    assert not [path for path, current in removed if path == current]
    texts = sorted((path / "data.txt").read_text() for path in (tmp_path / "data/.versions").iterdir())
    assert texts == ["before", "live"]  # what a rollback goes to is still the one before


def test_nobody_gets_in_while_leftovers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = shutil.rmtree, []

    def start_another(path: Path, **options: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", real)
        with pytest.raises(AdvpriorError) as caught:
            write(tmp_path / "out", "another")
        refused.append(caught.value.code)
        real(path, **options)

    (tmp_path / ".out.partial" / "part").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", start_another)
    write(tmp_path / "out", "one")
    assert refused == ["RUN005"]
    assert (tmp_path / "out/data.txt").read_text() == "one"
    assert not (tmp_path / "out/part").exists()


def test_a_key_knows_the_library_that_decides_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {step: run_key(step, {}, {}) for step in ("rank train", "score", "data")}
    monkeypatch.setattr(versions, "version", lambda name: "99")
    monkeypatch.setattr(versions, "_READ", {})
    after = {step: run_key(step, {}, {}) for step in before}
    assert {step for step in before if before[step] != after[step]} == {"rank train", "score"}
