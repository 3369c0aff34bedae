"""One world through the commands of a user, in this process: what each step said, and whether that was right.

A step ends well, or with one coded error, documented in docs/. Anything else is a fault: another exception, a warning
of a library, an invariant that does not hold (`tests.fuzz.invariants`). After the first error a world is over.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.fuzz import invariants
from tests.fuzz.worlds import World, make_world

ROOT = Path(__file__).parents[2]
DOCS = ("docs/checks.md", "docs/runbook.md")
RANKER = {"max_rounds": 12, "patience": 4, "min_data_in_leaf": 5, "threads": 1, "num_leaves": 7}

OBJECTIVES = ("binary", "binary", "lambdarank")


@dataclass
class Outcome:
    """How one world ended."""

    seed: int
    world: str
    steps: list[str] = field(default_factory=list)
    #: code of the error that ended it, empty after a success
    code: str = ""
    error: str = ""
    faults: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


class Ended(Exception):
    """The world is over: a coded error, or a fault."""


@cache
def documented_codes() -> frozenset[str]:
    """Every code that the documentation explains."""
    text = "\n".join((ROOT / name).read_text() for name in DOCS)
    return frozenset(re.findall(r"\b[A-Z]{3}\d{3}\b", text))


class Chain:
    """The steps of one world in a scratch folder."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.outcome = Outcome(world.seed, str(world))
        self.output = ""

    def step(self, name: str, action: Callable[[], Any]) -> Any:
        """Run one step and record what is wrong with it.

        Raises
        ------
        Ended
            After an error, coded or not.
        """
        from advprior.store.errors import AdvpriorError

        self.outcome.steps.append(name)
        with _listening() as (written, heard):
            try:
                result = action()
            except AdvpriorError as error:
                self.outcome.code, self.outcome.error = error.code, f"{name}: {error}"
                if error.code not in documented_codes():
                    self._fault(name, f"code {error.code} is in no document")
                raise Ended from error
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                self._fault(name, _place(error))
                raise Ended from error
        self.output = written.getvalue()
        for line in dict.fromkeys(map(_warned, heard)):
            self._fault(name, line)
        return result

    def command(self, *words: object) -> None:
        """An `advprior` command."""
        from advprior.cli import cli

        arguments = [str(word) for word in words]
        name = " ".join(arguments[: 2 if arguments[0] in ("data", "rank", "catalog") else 1])
        self.step(name, lambda: cli.main(args=arguments, prog_name="advprior", standalone_mode=False))

    def check(self, name: str, broken: Sequence[str]) -> None:
        """Note what does not hold after a step."""
        for what in broken:
            self._fault(name, what)

    def _fault(self, step: str, what: str) -> None:
        self.outcome.faults.append(f"{step}: {what}")


@contextlib.contextmanager
def _listening() -> Iterator[tuple[io.StringIO, list[warnings.WarningMessage]]]:
    """What is printed, and what libraries warn of."""
    written = io.StringIO()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for kind in (ResourceWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            yield written, heard


def _warned(warning: warnings.WarningMessage) -> str:
    where = f"{_short(warning.filename)}:{warning.lineno}"
    return f"warning {warning.category.__name__} at {where}: {warning.message}"


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-3:])


def _place(error: BaseException) -> str:
    """An exception with the innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/advprior/" in frame.filename or "/ranking/" in frame.filename] or frames
    where = f"{_short(ours[-1].filename)}:{ours[-1].lineno}" if ours else "?"
    return f"traceback {type(error).__name__} at {where}: {str(error).strip()[:300]}"


def run_world(seed: int, folder: Path, *, depth: int | None = None) -> Outcome:
    """Take the world of a seed through the chain.

    Parameters
    ----------
    seed : int
    folder : Path
        Scratch; must not exist.
    depth : int, optional
        0: tables, features and one prior; 1: the store, frame and ablation too; 2: the fitted priors, retrieval,
        evaluation and the service too. By default what the seed gives: 1 for one world in three, 2 for one in twelve.
    """
    started = time.process_time()
    world = make_world(seed)
    chain = Chain(world, folder)
    if depth is None:
        depth = 2 if seed % 12 == 7 else 1 if seed % 3 == 1 else 0
    with contextlib.suppress(Ended):
        _through(chain, depth)
    chain.outcome.cpu_s = time.process_time() - started
    return chain.outcome


def _through(chain: Chain, depth: int) -> None:
    world, folder = chain.world, chain.folder
    mapping = world.write(folder / "raw")
    tables, project = folder / "tables", folder / "project"
    chain.command("data", "check", "--mapping", mapping, "--out", tables)
    chain.check("data check", invariants.of_tables(world, tables, chain.output))
    chain.command("init", project)
    if (tables / "impressions.parquet").is_file():
        chain.command("data", "pairs", "--tables", tables, "--out", folder / "pairs")
        chain.check("data pairs", invariants.of_pairs(tables, folder / "pairs"))
    predictor = ["popularity", "neighbours"][world.seed % 2]
    prior(chain, tables, predictor)
    if not (tables / "impressions.parquet").is_file():
        return
    chain.command("publish", folder / f"{predictor}_priors", "--repo", project / "feature_repo")
    chain.command("rank", "features", "--tables", tables, "--repo", project / "feature_repo")
    if depth >= 1:
        _ranked(chain, tables, predictor)
    if depth >= 2:
        from tests.fuzz import deep

        deep.through(chain, tables, predictor)


def prior(chain: Chain, tables: Path, predictor: str, *settings: str) -> None:
    """Fit, export and score a predictor into ``PREDICTOR_priors``."""
    run, priors = chain.folder / predictor, chain.folder / f"{predictor}_priors"
    chain.command("finetune", "--tables", tables, "--predictor", predictor, "--out", run, *settings)
    chain.command("export", run)
    chain.command("score", run, "--tables", tables, "--out", priors, "--threads", 1)
    chain.check("score", invariants.of_priors(tables, priors))


def _ranked(chain: Chain, tables: Path, predictor: str) -> None:
    """The store, the frame, an ablation of two arms, a report, a ranker."""
    from tests.ranking.stores import apply

    folder, repo = chain.folder, chain.folder / "project" / "feature_repo"
    chain.step("feast apply", lambda: apply(repo))
    frame, ablation = folder / "frame", folder / "ablation"
    chain.command("rank", "frame", "--tables", tables, "--repo", repo, "--out", frame)
    chain.check("rank frame", invariants.of_frame(tables, frame))
    arms = folder / "arms.yaml"
    service = f"ranker_with_{predictor}_v1"
    arms.write_text(
        yaml.safe_dump(
            {
                "ranker": RANKER | {"objective": OBJECTIVES[chain.world.seed % len(OBJECTIVES)]},
                "arms": [
                    {"name": "baseline", "label": "Baseline", "service": "ranker_baseline_v1", "role": "baseline"},
                    {"name": predictor, "label": "Prior", "service": service, "adds": [f"prior_{predictor}"]},
                ],
            }
        )
    )
    settings = ["--arms", arms, "--replicates", 20, "--seeds", 1]
    chain.command("rank", "ablate", "--frame", frame, "--out", ablation, *settings)
    chain.check("rank ablate", invariants.of_ablation(frame, ablation))
    chain.command("rank", "report", ablation, "--out", folder / "report")
    chain.command("rank", "train", "--frame", frame, "--arm", predictor, "--arms", arms, "--out", folder / "ranker")
