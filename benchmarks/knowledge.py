"""Is the sentence of a learning curve on the right side of the crossing? Worlds whose truth is known.

    python -m benchmarks.knowledge [--worlds 50] [--first-seed 1000] [--out FILE.json]

In each world users buy by taste and popularity. An "encoder" reads what is written of advertisers: part of their taste,
by how much texts tell there, and noise for the rest; its random-weight control reads noise alone, and character
n-grams read names that say nothing. A world has one of several numbers of users and one of several shares that texts
tell, so that some lie before the crossing, where a prior from texts pays, and some beyond it.

The truth of a world is measured, not argued: its everyone-else is drawn too, many users that the sentence never sees,
every arm is fitted on so many of them as the world has users, several times, and tested on thousands. The sentence is
right where it claims a gain and the truth is one, or claims none and the truth is less than what so few tested users
could show: `SMALL` nats a label, set on other seeds than those that are reported.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from advprior.data.drawn import START
from advprior.data.taste_model import chunk_of_users, make_world
from advprior.evaluation.learning_curve.arms import LEXICAL, Source, with_averages
from advprior.evaluation.learning_curve.result import BEST_WITH, result_of
from advprior.evaluation.learning_curve.sentence import CONTROLS, METRIC, OVERALL, verdict_of
from advprior.evaluation.learning_curve.work import CurveInputs, CurveOptions, Work
from advprior.history.catalog import Catalog
from advprior.history.histories import Histories
from advprior.predictors.encoding.lexical import lexical_cosines
from advprior.predictors.text.similar import cosines
from advprior.store.arrays import Bool, Double, Float

ADVERTISERS, WEEKS = 60, 60
USERS = (200, 400, 800)
TELLS = (0.0, 0.05, 0.5, 1.0)  # share of an encoding's spread that is the advertiser's taste
EVERYONE = 1500  # users that the truth is measured on
TRUE_DRAWS = 4
CUTOFFS = (30, 38, 46)  # weeks
HORIZON = 8 * 7  # days
SMALL = 0.01  # nats a label
ENCODER, RANDOM = "encoder", "encoder, random weights"
WIDTH = 64  # of an encoding


@dataclass(frozen=True)
class Answer:
    """One world, what the sentence said of it and what is true.

    Attributes
    ----------
    seed, users : int
    tells : float
    kind : str
        Of the verdict.
    claimed : bool
        Whether it claims a gain over every control.
    truth : float
        Nats a label that the arm with the encoder truly gains, over the control that it gains least over.
    right : bool
    """

    seed: int
    users: int
    tells: float
    kind: str
    claimed: bool
    truth: float
    right: bool


def world_of(seed: int) -> Answer:
    """Draw a world, ask for its sentence, measure its truth."""
    rng = np.random.default_rng([seed, 7])
    users, tells = int(rng.choice(USERS)), float(rng.choice(TELLS))
    inputs = _inputs(seed, users + EVERYONE, tells)
    own = np.zeros(len(inputs.histories), np.bool_)
    own[:users] = True
    verdict = _verdict(_only(inputs, own), users)
    truth = _truth(_only(inputs, ~own), users)
    claimed = verdict == "win"
    right = truth > 0 if claimed else truth < SMALL
    return Answer(seed, users, tells, verdict, claimed, truth, right)


def _inputs(seed: int, users: int, tells: float) -> CurveInputs:
    """Histories of everyone, and what an encoder, its random weights and n-grams read."""
    world = make_world(ADVERTISERS, seed)
    events = chunk_of_users(world, range(users), WEEKS, seed, null=True)["events"]
    place = {name: i for i, name in enumerate(world.advertisers["advertiser_id"])}
    advertiser = events["advertiser_id"].map(place).to_numpy(np.int64)
    user = events["user_id"].str[1:].to_numpy().astype(np.int64)
    second = events["timestamp"].dt.tz_convert(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    order = np.lexsort((second, user))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=users))]).astype(np.int64)
    ids = tuple(f"u{i}" for i in range(users))
    histories = Histories(ids, ("",) * users, offsets, second[order], advertiser[order])
    rng = np.random.default_rng([seed, 8])
    names = tuple("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 8)) for _ in range(ADVERTISERS))
    tastes = world.taste.astype(np.float64)
    taste, noise, random = (
        _encoded(table, rng) for table in (tastes, *(rng.standard_normal(tastes.shape) for _ in range(2)))
    )
    read = np.sqrt(tells) * taste + np.sqrt(1 - tells) * noise
    by_source: dict[str, Float] = {LEXICAL: lexical_cosines(names)}
    by_source |= {
        ENCODER: cosines(read.astype(np.float32)),
        RANDOM: cosines(random.astype(np.float32)),
    }
    catalog = Catalog(tuple(world.advertisers["advertiser_id"]), names)
    sources = {ENCODER: Source(uses_llm=True, control=RANDOM), RANDOM: Source()}
    return CurveInputs(histories, catalog, *with_averages(by_source, sources), HORIZON * 86_400_000_000)


def _encoded(table: Double, rng: np.random.Generator) -> Double:
    """A table [N, K] as an encoding shows it: each number spread over many dimensions [N, H]."""
    spread: Double = table @ rng.standard_normal((table.shape[1], WIDTH)) / np.sqrt(table.shape[1])
    return spread


def _only(inputs: CurveInputs, users: Bool) -> CurveInputs:
    """The same world, with some users."""
    whole = inputs.histories
    row = users[whole.user_of_row]
    offsets = np.concatenate([[0], np.cumsum(np.diff(whole.offsets)[users])]).astype(np.int64)
    ids = tuple(np.asarray(whole.users, object)[users])
    some = Histories(ids, ("",) * len(ids), offsets, whole.time[row], whole.advertiser[row])
    return CurveInputs(some, inputs.catalog, inputs.cosines, inputs.sources, inputs.horizon)


def _options(sizes: tuple[int | None, ...], weeks: tuple[int, ...], draws: int) -> CurveOptions:
    return CurveOptions(sizes, tuple(START + timedelta(weeks=week) for week in weeks), draws)


def _verdict(inputs: CurveInputs, users: int) -> str:
    """What the sentence claims at this world's number of users."""
    options = _options((None,), CUTOFFS, 1)
    kind: str = verdict_of(result_of(Work(inputs, options).run(), options.sizes, options.cutoffs))["kind"]
    return kind


def _truth(inputs: CurveInputs, users: int) -> float:
    """The mean gain of the arm with the encoder over the control that it gains least over."""
    options = _options((users,), CUTOFFS[1:2], TRUE_DRAWS)
    result = result_of(Work(inputs, options).run(), options.sizes, options.cutoffs)
    gains: list[float] = [
        -row["difference"]
        for row in result["curve"]
        if row["cutoff"] is None
        and (row["arm"], row["segment"], row["metric"]) == (BEST_WITH, OVERALL, METRIC)
        and row["baseline"] in CONTROLS
    ]
    return min(gains)


def main() -> None:
    """Draw the worlds, print each, then how many sentences are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=1000, help="tune on seeds below 1000")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.process_time()
    answers = []
    for seed in range(options.first_seed, options.first_seed + options.worlds):
        answers.append(world_of(seed))
        print(" ".join(f"{name}={value}" for name, value in asdict(answers[-1]).items()), flush=True)
    right = sum(answer.right for answer in answers)
    share = binomtest(right, len(answers)).proportion_ci()
    print(f"right side: {right} of {len(answers)} [{share.low:.2f}, {share.high:.2f}]")
    print(f"{sum(a.claimed for a in answers)} claim a gain; {time.process_time() - started:.0f} CPU-seconds")
    if options.out:
        options.out.write_text(json.dumps([asdict(answer) for answer in answers], indent=1))


if __name__ == "__main__":
    main()
