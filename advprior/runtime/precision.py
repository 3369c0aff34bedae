"""Precisions of an exported graph, and the note beside it that says which one it has.

A graph in tf32 is that of fp32: what differs is how the session multiplies. So whoever opens a graph reads the note.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from advprior.runtime.parity import RELATIVE

FP32, TF32, BF16, FP16 = "fp32", "tf32", "bf16", "fp16"
PRECISIONS = (FP32, TF32, BF16, FP16)
NOTE_FILE = "graph.json"
#: Largest difference between two forwards of the same prompt, alone and in a batch, long and cut: of the largest
#: log-prob. Products round by the shape of the batch: to 10 bits in tf32 and fp16, to 7 in bf16. A leak is far larger.
ROUNDING = {FP32: RELATIVE, TF32: 4e-3, FP16: 4e-3, BF16: 3.2e-2}


def precision_of(graph: Path) -> str:
    """What the note beside a graph says; fp32 where there is none.

    Parameters
    ----------
    graph : Path
        A ``.onnx`` file.
    """
    return str(read_note(graph.parent).get("precision", FP32))


def read_note(folder: Path) -> dict[str, Any]:
    """The note in an export's folder; empty for an export of before there was one."""
    try:
        note: dict[str, Any] = json.loads((folder / NOTE_FILE).read_text())
    except FileNotFoundError:
        return {}
    return note


def write_note(folder: Path, **facts: Any) -> None:
    """Write or extend the note: ``precision``, ``attention``."""
    (folder / NOTE_FILE).write_text(json.dumps({**read_note(folder), **facts}, indent=1) + "\n")
