"""Without a terminal a long loop forecasts its time and says every minute how far it is; a short one is silent."""

from __future__ import annotations

import ast
import re
import time
from pathlib import Path

import pytest

from advprior.store.progress import Progress, tracked

ROOT = Path(__file__).resolve().parents[3]


def line_that_comes(pattern: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a line comes; a busy machine has half a minute for it."""
    text, end = "", time.monotonic() + 30
    while not re.search(pattern, text) and time.monotonic() < end:
        time.sleep(0.02)
        text += capsys.readouterr().err
    return re.search(pattern, text) is not None


def test_lines_come_while_one_part_lasts_and_tell_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(4, "fit", "batch", every=0.05) as progress:
        assert line_that_comes(r"… fit: 0 of 4 \(batch\) after \d+ s; the time left is not measured yet", capsys)
        progress.update()
        assert line_that_comes(r"… fit: about \d+ s in all, by the first 1 of 4 \(batch\)", capsys)
        progress.note(train_nll=1.25)
        assert line_that_comes(r"… fit: 1 of 4 \(batch\) after \d+ s; about \d+ s left, train_nll 1.250", capsys)


def test_a_short_loop_says_nothing_and_its_items_come_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked(iter("abc"), "spell", "letter", total=3)) == ["a", "b", "c"]
    assert "…" not in capsys.readouterr().err


def test_what_an_earlier_process_did_is_not_measured_as_ours() -> None:
    with Progress(10, "score", "shard", initial=8) as progress:
        assert progress.left() is None
        progress.update()
        assert progress.left() == pytest.approx(progress.elapsed, rel=0.5)


def test_no_loop_of_the_packages_goes_past_it() -> None:
    """A bar of tqdm alone is silent where there is no terminal."""
    users = {
        path.relative_to(ROOT).as_posix()
        for package in ("advprior", "ranking")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tqdm")
    }
    assert users == {"advprior/store/progress.py"}
