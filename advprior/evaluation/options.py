"""How an evaluation is run: what does not say what is measured, but how, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

Seeds = Literal["together", "averaged", "apart"]
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Options:
    """Options of `advprior.evaluation.ladder.evaluate` and `advprior.evaluation.cold.evaluate_cold`.

    Attributes
    ----------
    horizon : timedelta
        Labels lie in ``[cutoff, cutoff + horizon)``.
    earlier : tuple of Path
        None, or one for each run: the same predictor fitted on less, whose scores weigh it in the blend. A run that saw
        the blend's labels looks better on them than it is.
    seeds : {"together", "averaged", "apart"}
        Runs whose fits differ in nothing but their seed (`advprior.evaluation.seeds`) are one arm with their mean
        figures; one arm that answers with their mean probability; or an arm each.
    profile_only : int
        At most this many users without an event before the cut-off are asked about too, drawn at random: the segment
        ``profile only``, apart from all others.
    replicates, seed : int
        Of the bootstrap; the seed is that of ALS and of every sample, too.
    users : int, optional
        Ask about no more than so many, drawn by ``seed``, the same for every arm: for arms that cost too much for all.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Of ONNX Runtime; the real cores by default.
    """

    horizon: timedelta = 365 * DAY
    earlier: tuple[Path, ...] = ()
    seeds: Seeds = "together"
    profile_only: int = 4000
    replicates: int = 1000
    seed: int = 0
    users: int | None = None
    device: str = "auto"
    threads: int | None = None

    @property
    def horizon_micros(self) -> int:
        """The horizon in microseconds."""
        return round(self.horizon.total_seconds() * 1_000_000)
