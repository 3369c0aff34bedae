"""Does a fit say the same on a card as on the CPU, and what does it cost there? Same seeds, both devices, side by side.

    python -m benchmarks.gpu_fit WORKSPACE --device cuda --predictors sasrec,llm,llm:full,towers

Tables are drawn into WORKSPACE unless ``--tables`` names some. For each predictor: validation NLL on both devices and
how far they are apart (bound: .005), seconds of an epoch on each, peak memory of the card. A predictor is named
``kind`` or ``kind:variant``; the LLM's variants are its modes (``cached``, ``lora``, ``full``) and ``bf16``: ``full``
at that precision on the card, against float32 on the CPU. Training NLL is compared, too: where a fit gives the network
no say, validation NLL is that of habit and drift alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advprior.data import clicks
from advprior.data.drawn import Size
from advprior.pipeline.fit import finetune, validated_settings
from advprior.predictors.tuning.base import DEFAULT_BASE
from advprior.store.device import CPU, computing_on
from advprior.store.runs import read_manifest
from benchmarks.scale.rows import Rows

ALLOWED_NLL = 0.005  # issue 15: validation NLL on GPU and CPU, same seeds
PREDICTORS = ("sasrec", "hybrid", "llm:cached", "llm:lora", "llm:full", "llm:bf16", "towers")
_MIB = 1 << 20


@dataclass(frozen=True)
class Job:
    """What is fitted.

    Parameters
    ----------
    workspace : Path
        Folder for tables and runs.
    tables : Path
        Canonical tables.
    base : str
        Of the LLM and of the hybrid's encoder: name or folder.
    layers : int
        Of it that are kept.
    epochs : int
    """

    workspace: Path
    tables: Path
    base: str = DEFAULT_BASE
    layers: int = 4
    epochs: int = 2


@dataclass(frozen=True)
class Fitted:
    """How a fit went.

    Attributes
    ----------
    device : str
        As the manifest names it, with the card.
    valid_nll, train_nll : float
        Nats; of the last epoch, where it is of training.
    epoch_s : float
        Of its last epoch: the first one warms up.
    peak_mib : float
        Most memory of the card that torch had at once; 0 on a CPU.
    """

    device: str
    valid_nll: float
    train_nll: float
    epoch_s: float
    peak_mib: float = 0.0


def small_tables(folder: Path, users: int = 400, advertisers: int = 60, weeks: int = 26) -> Path:
    """A click log with names, drawn once."""
    clicks.build(folder, Size(users=users, advertisers=advertisers, weeks=weeks))
    return folder


def settings_of(job: Job, predictor: str, device: str) -> tuple[str, dict[str, Any]]:
    """Kind and settings of what a predictor's name says."""
    kind, _, variant = predictor.partition(":")
    training: dict[str, Any] = {"epochs": job.epochs, "patience": job.epochs}
    if kind == "hybrid":
        return kind, {"training": training, "encoder": {"base": job.base, "layers": job.layers}}
    if kind != "llm":
        return kind, {"training": training}
    mode = {"": "cached", "bf16": "full"}.get(variant, variant)
    precision = "bf16" if variant == "bf16" and device != CPU else "no"
    rates = {"lora": {"lr": 5e-4}}.get(mode, {})
    tuned = {**training, **rates, "mixed_precision": precision}
    return kind, {"base": job.base, "layers": job.layers, "mode": mode, "training": tuned}


def fit(job: Job, predictor: str, device: str) -> Fitted:
    """Fit a predictor on a device."""
    with _peak() as peak, computing_on(device):
        facts = _towers(job, device) if predictor == "towers" else _predictor(job, predictor, device)
    return replace(facts, peak_mib=peak[0])


def _predictor(job: Job, predictor: str, device: str) -> Fitted:
    kind, raw = settings_of(job, predictor, device)
    out = job.workspace / f"{predictor.replace(':', '_')}-{device.replace(':', '_')}"
    finetune(job.tables, out, kind, validated_settings(kind, raw, "benchmark"), force=True)
    facts = read_manifest(out)["facts"]
    compute, curve = facts["compute"], facts["curve"]
    name = f"{compute['card'] or compute['device']}, {compute['mixed_precision']}"
    return Fitted(name, facts["valid"]["model"]["nll"], curve[-1]["train_nll"], curve[-1]["seconds"])


def _towers(job: Job, device: str) -> Fitted:
    from time import monotonic

    from advprior.store.tables import load_tables, load_time_plan
    from ranking.candidates.training import TowerConfig, fit_towers

    loaded = load_tables(job.tables, "users", "ads", "events", "impressions")
    started = monotonic()
    towers = fit_towers(
        loaded["users"],
        loaded["ads"],
        loaded["events"],
        loaded["impressions"],
        load_time_plan(job.tables),
        TowerConfig(epochs=job.epochs),
    )
    curve = towers.facts["curve"]
    seconds = (monotonic() - started) / len(curve)
    return Fitted(towers.facts["device"], towers.facts["valid_loss"], curve[-1]["train"], seconds)


@contextmanager
def _peak() -> Iterator[list[float]]:
    """A list whose only number is afterwards the card's peak memory in MiB."""
    import torch

    peak = [0.0]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield peak
    if torch.cuda.is_available():
        peak[0] = torch.cuda.max_memory_allocated() / _MIB


def fit_parity(job: Job, predictor: str, device: str, rows: Rows | None = None) -> bool:
    """Fit a predictor on the CPU and on a device, and print both; whether they say the same."""
    rows = rows or Rows("gpu_fit")
    sides = [fit(job, predictor, one) for one in (CPU, device)]
    for side in sides:
        rows.note(f"{predictor} on {side.device}: validation NLL", f"{side.valid_nll:.4f}")
        rows.note(f"{predictor} on {side.device}: one epoch", f"{side.epoch_s:.1f} s")
    rows.note(f"{predictor} on {sides[1].device}: peak of its memory", f"{sides[1].peak_mib:,.0f} MiB")
    pairs = {
        "validation": (sides[0].valid_nll, sides[1].valid_nll),
        "training": (sides[0].train_nll, sides[1].train_nll),
    }
    near = [
        rows.at_most(f"{predictor}: {what} NLL, CPU against {device}", abs(ours - theirs), ALLOWED_NLL)
        for what, (ours, theirs) in pairs.items()
    ]
    return all(near)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where the devices differ by more than they may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--predictors", default=",".join(PREDICTORS))
    parser.add_argument("--base", default=DEFAULT_BASE)
    parser.add_argument("--layers", type=int, default=Job.layers)
    parser.add_argument("--epochs", type=int, default=Job.epochs)
    options = parser.parse_args(arguments)
    tables = options.tables or small_tables(options.workspace / "tables")
    job = Job(options.workspace, tables, options.base, options.layers, options.epochs)
    rows = Rows("gpu_fit")
    for predictor in options.predictors.split(","):
        fit_parity(job, predictor, options.device, rows)
    return rows.exit_code


if __name__ == "__main__":
    sys.exit(main())
