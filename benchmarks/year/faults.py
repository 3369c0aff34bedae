"""The faults of the year: a refresh that is killed, a publication that is damaged, rankers that are bad."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import numpy as np

from advprior.store.contract import LABEL, MATRIX_FILE, TABLE_FILE
from advprior.store.tables import read_parquet, write_parquet
from benchmarks.year.project import Project
from ranking.frame.read import FRAME_FILE


def killed_refresh(project: Project, moment: datetime, after: float) -> str:
    """Start a refresh and kill it after some seconds; where it was, by the last line that it printed."""
    before = len(project.log.read_text().splitlines())
    running = project.start_refresh(moment)
    try:
        running.wait(after)
        return "it had ended"
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGKILL)
        running.wait()
    said = project.log.read_text().splitlines()[before:]
    return said[-1].strip() if said else "it was importing"


def length_of_refresh(project: Project, moment: datetime) -> float:
    """Seconds that a refresh takes in a process of its own."""
    begin = time.monotonic()
    if code := project.start_refresh(moment).wait():
        raise SystemExit(f"a refresh in a process of its own ended with {code}: see {project.log}")
    return time.monotonic() - begin


def damage_publication(project: Project, rng: np.random.Generator) -> str:
    """Overwrite bytes of what is published, as a failing disk does; the file's name.

    The file keeps its size: half of its pages hold noise.
    """
    name = str(rng.choice([MATRIX_FILE, TABLE_FILE]))
    path = project.published / name
    content = bytearray(path.read_bytes())
    begin = len(content) // 2
    content[begin:] = rng.bytes(len(content) - begin)
    path.write_bytes(content)
    return name


def bad_ranker(project: Project, frame: str, out: str, *, inverted: bool, rng: np.random.Generator) -> None:
    """A ranker that was trained on wrong labels: shuffled, or the opposite of what happened."""
    source, wrong = project.folder / frame, project.folder / "frames" / "wrong"
    shutil.rmtree(wrong, ignore_errors=True)
    shutil.copytree(source, wrong)
    path = Path(wrong) / FRAME_FILE
    rows = read_parquet(path)
    labels = rows[LABEL].to_numpy()
    rows[LABEL] = (1 - labels if inverted else rng.permutation(labels)).astype(labels.dtype)
    if path.is_dir():
        shutil.rmtree(path)
    write_parquet(rows, path)
    project.train("frames/wrong", out)
    shutil.rmtree(wrong)
