"""The project of the year: its folder, its store on a real Redis, its commands, and the service beside it.

A command is run by its own entry point in this process, which saves the imports of Feast on each of 365 days; where a
fault is to strike it, in a process of its own.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import yaml

from advprior.cli import main
from advprior.pipeline.process import environment
from advprior.pipeline.project import lay_out
from advprior.store.contract import BASELINE_SERVICE, SNAPSHOT, TABLE_FILE, prior_service, prior_view
from advprior.store.runs import read_manifest
from advprior.store.tables import read_parquet

SERVED = "neighbours"
VIEW = prior_view(SERVED)
_RANKER = {"learning_rate": 0.15, "max_rounds": 60, "patience": 8, "min_data_in_leaf": 20, "num_leaves": 15}
#: Settings of a predictor that knows popularity only.
_OTHER = {"similar": False, "half_lives_days": [0.01]}


@dataclass(frozen=True)
class Ran:
    """What a command gave."""

    code: int
    output: str


@dataclass
class Project:
    """A project folder beside the world's ``raw`` exports.

    Attributes
    ----------
    folder : Path
    log : Path
        All that its commands print.
    spent : dict of str to float
        CPU-seconds by command, of those that ran in this process.
    """

    folder: Path
    log: Path
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def repo(self) -> Path:
        """The feature repository."""
        return self.folder / "feature_repo"

    @property
    def published(self) -> Path:
        """The current publication of the priors."""
        return self.repo / "data" / VIEW

    @property
    def tables(self) -> Path:
        """Checked tables."""
        return self.folder / "tables"

    def run(self, *words: object) -> Ran:
        """Run an `advprior` command in the project folder, in this process."""
        arguments = [str(word) for word in words]
        begin = time.process_time()
        with ExitStack() as stack:
            printed = io.StringIO()
            stack.enter_context(redirect_stdout(printed))
            stack.enter_context(redirect_stderr(printed))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            back = os.getcwd()
            os.chdir(self.folder)
            try:
                main(arguments)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                os.chdir(back)
        output = printed.getvalue()
        self.spent[" ".join(arguments[: 2 if arguments[0] in ("rank", "data") else 1])] += time.process_time() - begin
        with self.log.open("a") as log:
            log.write(f"$ advprior {' '.join(arguments)}\n{output}[{code}]\n")
        return Ran(code, output)

    def must(self, *words: object) -> str:
        """Run a command that has to succeed; what it printed."""
        ran = self.run(*words)
        if ran.code:
            raise SystemExit(f"advprior {' '.join(map(str, words))} ended with {ran.code}:\n{ran.output[-3000:]}")
        return ran.output

    def refresh(self, moment: datetime) -> Ran:
        """The daily refresh, as of a moment."""
        return self.run("refresh", ".", "--now", moment.isoformat(), "--threads", 1)

    def start_refresh(self, moment: datetime) -> subprocess.Popen[bytes]:
        """The same in a process of its own, as a scheduler starts it."""
        words = [sys.executable, "-W", "ignore", "-m", "advprior", "refresh", ".", "--now", moment.isoformat()]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*words, "--threads", "1"], cwd=self.folder, env=environment(), stdout=log, stderr=subprocess.STDOUT
            )

    def lay_out(self, raw: Path, redis_port: int) -> None:
        """A new project on the raw files, with its store on Redis."""
        lay_out(self.folder)
        config = {
            "tables": {"mapping": str(raw / "mapping.yaml")},
            "priors": [SERVED],
            "arms": {"ranker": {**_RANKER, "threads": 1}},
            "refresh": {"keep_snapshots": 90},
        }
        (self.folder / "advprior.yaml").write_text(yaml.safe_dump(config))
        (self.repo / "feature_store.yaml").write_text(
            "project: advprior\nprovider: local\nregistry: data/registry.db\nonline_store:\n  type: redis\n"
            f"  connection_string: localhost:{redis_port}\n"
            "offline_store:\n  type: duckdb\nbatch_engine:\n  type: advprior.store.online.engine.ColumnarEngine\n"
            "entity_key_serialization_version: 3\n"
        )

    def first_run(self, moment: datetime) -> None:
        """What `advprior run` would do up to two rankers, and the first refresh."""
        model = f"models/{SERVED}"
        self.must("data", "check", "--mapping", self._mapping(), "--out", "tables")
        self.must("finetune", "--predictor", SERVED, "--tables", "tables", "--out", model)
        self.must("export", model)
        self.must("score", model, "--tables", "tables", "--out", f"priors/{SERVED}")
        self.must("publish", f"priors/{SERVED}", "--repo", "feature_repo")
        self.must("rank", "features", "--tables", "tables", "--repo", "feature_repo")
        feast = [sys.executable, "-m", "advprior.store.feast_import", "-c", "feature_repo", "apply"]
        subprocess.run(feast, cwd=self.folder, env=environment(), check=True, capture_output=True)
        self.must("rank", "frame", "--tables", "tables", "--repo", "feature_repo", "--out", "frames/first")
        for name in ("ranker", "ranker_baseline"):
            self.train("frames/first", name)
            shutil.copytree(self.folder / name, self.folder / "offered" / f"first_{name}")
        self.must("refresh", ".", "--now", moment.isoformat(), "--threads", 1)

    def frame(self, name: str) -> str:
        """A frame of today's tables, and of what is published."""
        out = f"frames/{name}"
        self.must("rank", "frame", "--tables", "tables", "--repo", "feature_repo", "--out", out)
        return out

    def train(self, frame: str, out: str, seed: int = 0) -> None:
        """A ranker with priors, or without where it is named so."""
        service = BASELINE_SERVICE if "baseline" in out else prior_service(SERVED)
        self.must("rank", "train", "--frame", frame, "--service", service, "--out", out, "--seed", seed)

    def refit(self, *, other: bool) -> None:
        """A new predictor on today's tables takes the place of the one that is there.

        Parameters
        ----------
        other : bool
            By mistake one with other settings, whose priors hardly tell one user from another.
        """
        new, place = self.folder / "models" / "new", self.folder / "models" / SERVED
        settings = self.folder / "configs" / "neighbours.yaml"
        settings.write_text(yaml.safe_dump(_OTHER if other else {}))
        words = ("finetune", "--predictor", SERVED, "--tables", "tables", "--out", new, "--force")
        self.must(*words, "--config", settings)
        self.must("export", new)
        shutil.rmtree(place)
        os.rename(new, place)

    def publication(self) -> tuple[str, str, set[str]]:
        """Name of the current publication, its catalog and its snapshots."""
        folder = self.published.resolve()
        times = read_parquet(folder / TABLE_FILE, columns=[SNAPSHOT])[SNAPSHOT]
        catalog = str(read_manifest(folder)["facts"]["catalog_version"])
        return folder.name.rpartition("-")[2], catalog, {moment.isoformat() for moment in times.unique()}

    def _mapping(self) -> str:
        return str(yaml.safe_load((self.folder / "advprior.yaml").read_text())["tables"]["mapping"])


def serve_command(project: Project, port: int, experiment: Path, exposures: Path) -> list[str]:
    """The service, ranking each request as of the time that it brings."""
    words = [sys.executable, "-W", "ignore", "-m", "advprior", "rank", "serve", "--repo", project.repo]
    words += ["--ranker", project.folder / "ranker", "--fallback", project.folder / "ranker_baseline"]
    words += ["--no-api-key", "--port", port, "--clock", "request", "--refresh-s", "0.5", "--log-level", "warning"]
    words += ["--experiment", experiment, "--exposures", exposures, "--log-features", "1"]
    return [str(word) for word in words]


def megabytes(*folders: Path) -> float:
    """Of all files below some folders, links not followed."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6
