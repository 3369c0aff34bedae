"""Steps in the making: what a project's priors, store, rankers and report take, as commands in the project folder.

The order is for people: what is cheap and tells something comes first, so that a first answer stands before the
language model is fitted.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import yaml

from advprior.pipeline.armsfile import arms_text, control_names, first_arms_text, ranker_modules
from advprior.pipeline.presets import CHEAP
from advprior.pipeline.prior_settings import graph_form, runs_read, settings_in
from advprior.pipeline.settings import HIDDEN, Prior, Project
from advprior.pipeline.slates import slate_sizes
from advprior.pipeline.steps import Plan, Step
from advprior.store.contract import (
    AD_STATS_VIEW,
    BASELINE_SERVICE,
    LLM,
    PREDICTOR_ONLY,
    USER_HISTORY_VIEW,
    USER_PROFILE_VIEW,
    TimePlan,
    prior_service,
    prior_view,
)
from advprior.store.project_files import CLUSTERED_FOLDER, PAIRS_FOLDER, TABLES_FOLDER
from advprior.store.runs import MANIFEST, read_manifest

TABLES, PAIRS, CLUSTERED = TABLES_FOLDER, PAIRS_FOLDER, CLUSTERED_FOLDER
#: The step that ends the first answer.
FIRST = "first rank ablate"
FIRST_ABLATION = "first/ablation"
_PROFILE_AND_HISTORY = (USER_PROFILE_VIEW, USER_HISTORY_VIEW, AD_STATS_VIEW)


def tables_folder(project: Project) -> str:
    """Where the project's canonical tables lie, relative to it."""
    return project.config.tables.folder or TABLES


class Chain:
    """Steps in the making: one folder (the project, or one cut-off inside it) and what tells its names apart."""

    def __init__(self, project: Project, folder: str = "", suffix: str = "") -> None:
        self.project, self.config = project, project.config
        self.folder, self.suffix = folder, suffix
        self.steps: list[Step] = []
        self.files: dict[str, str] = {}
        manifest = project.folder / self.at(TABLES) / MANIFEST
        facts = read_manifest(manifest.parent)["facts"] if manifest.is_file() else {}
        self.times = TimePlan.from_json(facts["time_plan"]) if "time_plan" in facts else None
        self.predictor_only = facts.get("purpose") == PREDICTOR_ONLY
        self.slate_size = facts["rows"]["impressions"] / facts["slates"] if facts.get("slates") else None

    def plan(self) -> Plan:
        return Plan(tuple(self.steps), self.files)

    def at(self, name: str) -> str:
        """A folder of this chain, relative to the project."""
        if name == TABLES and not self.folder:
            return tables_folder(self.project)
        return f"{self.folder}/{name}" if self.folder else name

    @property
    def repo(self) -> str:
        return self.at("feature_repo")

    def view(self, name: str) -> str:
        return f"{self.repo}/data/{prior_view(name)}"

    def advprior(
        self, name: str, *words: str, out: str, reads: tuple[str, ...], also: tuple[str, ...] = (), kind: str = ""
    ) -> None:
        """Add an ``advprior`` command that writes ``out`` and reads folders of this chain, and others, ``also``."""
        folder = self.at(out)
        inputs = (*(self.at(one) for one in reads), *also)
        self.steps.append(
            Step(name + self.suffix, ("advprior", *words, "--out", folder), inputs, folder, kind=kind or name)
        )

    # -- tables ------------------------------------------------------------------------------------
    def tables(self) -> None:
        """The user's own through a mapping, or an example's."""
        tables = self.config.tables
        words: tuple[str, ...]
        if tables.mapping is not None:
            words = ("data", "check", "--mapping", tables.mapping)
            self.advprior("data check", *words, out=TABLES, reads=(), also=(tables.mapping, *self._sources()))
        elif tables.example is not None:
            defaults = {"households": "200"} if tables.example == "complete_journey" else {}
            options = [word for name, value in {**defaults, **tables.options}.items() for word in (f"--{name}", value)]
            words = ("data", "build", tables.example, *options, "--seed", str(self.config.seed))
            self.advprior("data build", *words, out=TABLES, reads=())

    def _sources(self) -> tuple[str, ...]:
        """Files that the mapping names; a mapping that cannot be read is told by the command itself."""
        path = self.project.folder / str(self.config.tables.mapping)
        try:
            raw = yaml.safe_load(path.read_text())
            inside = Path(str(self.config.tables.mapping)).parent / raw.get("folder", ".")
            return tuple((inside / table["file"]).as_posix() for table in raw["tables"].values())
        except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
            return ()

    # -- everything behind them ----------------------------------------------------------------------
    def everything(self) -> None:
        """All of one project: measured, then served."""
        self.measure()
        if self.predictor_only:
            return
        if self.config.retrieval is not None:
            self.retrieval()
        self.rankers()
        if self.config.report is not None:
            self.report()
        self.materialize()

    def measure(self) -> None:
        """Priors, the store, the frame and the ablation."""
        if any(prior.by == "advertiser_category" for prior in self.config.priors):
            tables = self.at(TABLES)
            self.advprior("data pairs", "data", "pairs", "--tables", tables, out=PAIRS, reads=(TABLES,))
        cheap = [prior for prior in self.config.priors if prior.predictor in CHEAP]
        costly = sorted(
            (prior for prior in self.config.priors if prior not in cheap),
            key=lambda prior: bool(runs_read(prior, self.config.priors)),
        )
        for prior in cheap:
            self.prior(prior)
        if self.predictor_only:
            for prior in costly:
                self.prior(prior)
            self.evaluate()
            return
        tables = self.at(TABLES)
        if self.config.clusters is not None:
            self._clusters(self.config.cluster_reader)
            tables = self.at(CLUSTERED)  # the same rows: only the features read the column
        self.steps.append(
            Step(
                "rank features" + self.suffix,
                ("advprior", "rank", "features", "--tables", tables, "--repo", self.repo),
                (tables,),
                f"{self.repo}/data/{USER_HISTORY_VIEW}",
                kind="rank features",
            )
        )
        if cheap and costly and self.config.first_answer and not self.folder:
            self.first_answer(cheap)
        for prior in costly:
            self.prior(prior)
        self.feast("feast apply", "apply", self.views())
        self._after("first rank frame")
        self.frame_and_ablation()

    def evaluate(self) -> None:
        """Where nothing was shown: who names the next advertiser best, after the last label that was fitted on."""
        assert self.times is not None  # tables that are known to lack impressions are made
        runs = tuple(self.at(f"models/{prior.name}") for prior in self.config.priors if prior.by == "advertiser")
        days = max(1, (self.times.end - self.times.finetune_end).days)
        words = ("--cutoff", self.times.finetune_end.isoformat(), "--horizon", f"{days}d", "--out", "evaluation.json")
        command = ("advprior", "evaluate", *runs, "--tables", self.at(TABLES), *words)
        inputs = (self.at(TABLES), *runs, *(f"{run}/onnx" for run in runs))
        self.steps.append(Step("evaluate", command, inputs, exists=("evaluation.json",), kind="evaluate"))

    def _clusters(self, reader: Prior | None) -> None:
        """The tables with a column of clusters; where a prior's run reads the texts, it is that of this cut-off."""
        options = list(self.config.cluster_options)
        if reader is not None:  # features, and so the first answer, wait for its fit
            self.fit(reader)
            place = options.index("--base") + 1
            options[place] = self.at(Path(options[place]).as_posix())
        words = ("data", "clusters", "--tables", self.at(TABLES), *options)
        reads = (TABLES, *((f"models/{reader.name}",) if reader is not None else ()))
        self.advprior("data clusters", *words, out=CLUSTERED, reads=reads)

    def fit(self, prior: Prior) -> None:
        """Fit one prior, where no step before did."""
        name = prior.name
        if f"finetune {name}{self.suffix}" in {step.name for step in self.steps}:
            return
        source = PAIRS if prior.by == "advertiser_category" else TABLES
        fit: tuple[str, ...] = ("finetune", "--tables", self.at(source))
        fit += () if prior.predictor == LLM else ("--predictor", prior.predictor)
        settings = self._settings(prior)
        fit += ("--config", settings) if settings else ()
        also = (settings,) if settings else ()
        kind = f"finetune {prior.predictor}"
        reads = (source, *runs_read(prior, self.config.priors))
        self.advprior(f"finetune {name}", *fit, out=f"models/{name}", reads=reads, also=also, kind=kind)

    def prior(self, prior: Prior) -> None:
        """Fit, export, score and publish one prior, and its placebo."""
        self.fit(prior)
        name = prior.name
        source = PAIRS if prior.by == "advertiser_category" else TABLES
        model, priors = f"models/{name}", f"priors/{name}"
        onnx = f"{model}/onnx"
        form = graph_form(self.config, prior, self.at(source))
        self.steps.append(
            Step(
                f"export {name}{self.suffix}",
                ("advprior", "export", self.at(model), *form),
                (self.at(model), *((self.at(source),) if form else ())),
                self.at(onnx),
                kind=f"export {prior.predictor}",
            )
        )
        score = ("score", self.at(model), "--tables", self.at(source), *self.config.device_option)
        kind = f"score {prior.predictor}"
        self.advprior(f"score {name}", *score, out=priors, reads=(model, onnx, source), kind=kind)
        if self.predictor_only:
            return
        online = prior == self.config.served
        self.publish(name, name, () if name == prior.predictor else ("--as", name), online)
        if prior.placebo_name is not None:
            self.publish(prior.placebo_name, name, ("--as", prior.placebo_name), False)

    def publish(self, name: str, source: str, named: tuple[str, ...], online: bool) -> None:
        """Put scored priors into the store; what is not served stays offline."""
        priors = self.at(f"priors/{source}")
        offline = () if online else ("--offline",)
        command = ("advprior", "publish", priors, "--repo", self.repo, *named, *offline)
        self.steps.append(Step(f"publish {name}{self.suffix}", command, (priors,), self.view(name), kind="publish"))

    def _settings(self, prior: Prior) -> str | None:
        """Settings file of a prior: the one it names, or one made of what the data's span, the project's own defaults
        and the project file say, in that order.
        """
        if prior.settings_file is not None:
            return prior.settings_file
        settings = settings_in(self.project, prior, self.times, self.at)
        if not settings:
            return None
        path = f"{HIDDEN}/settings/{self.at(prior.name)}.yaml"
        self.files[path] = yaml.safe_dump(settings, sort_keys=False)
        return path

    def views(self) -> tuple[str, ...]:
        """Folders of all published views so far."""
        published = [step.output for step in self.steps if step.kind == "publish" and step.output]
        return (*(f"{self.repo}/data/{name}" for name in _PROFILE_AND_HISTORY), *published)

    def feast(self, name: str, verb: str, views: tuple[str, ...], *words: str, exists: tuple[str, ...] = ()) -> None:
        """One of Feast's own commands: it reads the definitions and the published views."""
        files = tuple(f"{self.repo}/{file}" for file in ("definitions.py", "feature_store.yaml"))
        store = f"{self.repo}/feature_store.yaml"
        needed = tuple(f"{self.repo}/{file}" for file in ("data/registry.db", *exists) if self._names(store, file))
        publishes = tuple(step.name for step in self.steps if step.output in views or step.kind == "rank features")
        self.steps.append(
            Step(
                name + self.suffix,
                ("feast", "-c", self.repo, verb, *words),
                (*files, *views),
                after=publishes,
                exists=needed,
                kind=f"feast {verb}",
            )
        )

    def _names(self, store: str, file: str) -> bool:
        """Whether the store's configuration keeps this very file."""
        path = self.project.folder / store
        source = path if path.is_file() else self.project.folder / "feature_repo" / "feature_store.yaml"
        return source.is_file() and file in source.read_text()

    def first_answer(self, cheap: list[Prior]) -> None:
        """What the priors that need no network do to the ranker: the full measurement, which the final one takes over.

        Where a file of the user's says what is measured, it cannot be taken over: then one seed, and fewer rounds.
        """
        self.feast("first feast apply", "apply", self.views())
        names = [prior.name for prior in cheap]
        views = tuple(self.view(name) for name in names)
        tables = self.at(TABLES)
        frame = ("rank", "frame", "--tables", tables, "--repo", self.repo, "--predictors", ",".join(names))
        self.advprior("first rank frame", *frame, out="first/frame", reads=(TABLES,), also=views)
        self._after("first feast apply")
        arms = f"{HIDDEN}/arms_first.yaml"
        self.files[arms] = first_arms_text(self.config, self.project.folder)
        ablate = ("rank", "ablate", "--frame", self.at("first/frame"), "--arms", arms)
        seeds = self._seeds() if self.config.arms.file is None else ("--seeds", "1")
        words = (*ablate, *seeds, "--replicates", "200", *self._decision())
        self.advprior(FIRST, *words, out=FIRST_ABLATION, reads=("first/frame",), also=(arms,))

    def _decision(self) -> tuple[str, ...]:
        options = () if self.config.decide_on is None else ("--decide-on", self.config.decide_on)
        sizes = slate_sizes(self.slate_size, always=bool(self.folder))
        return options if sizes is None else (*options, "--slots", str(sizes[1]))

    def _seeds(self) -> tuple[str, ...]:
        return ("--seeds", str(self.config.arms.seeds)) if self.config.arms.seeds != 3 else ()

    def _after(self, *names: str) -> None:
        """The newest step comes after others whose folders it does not read: the registry is for one at a time."""
        names_so_far = {step.name for step in self.steps}
        others = tuple(name + self.suffix for name in names if name + self.suffix in names_so_far)
        self.steps[-1] = replace(self.steps[-1], after=(*self.steps[-1].after, *others))

    def frame_and_ablation(self) -> None:
        """The point-in-time frame of all priors, and what each arm does to the ranker."""
        stale = ",".join(map(str, self.config.arms.stale))
        frame: tuple[str, ...] = ("rank", "frame", "--tables", self.at(TABLES), "--repo", self.repo)
        frame += ("--stale", stale) if stale else ()
        self.advprior("rank frame", *frame, out="frame", reads=(TABLES,), also=self.views())
        self._after("feast apply")
        arms = self._arms()
        options = self._seeds()
        options += ("--replicates", str(self.config.arms.replicates)) if self.config.arms.replicates != 1000 else ()
        options += ("--optional",) if self.config.arms.variants else ()
        options += self._decision()
        if self.config.arms.file is None and FIRST in {step.name for step in self.steps}:
            options += ("--reuse", self.at(FIRST_ABLATION))
        ablate = ("rank", "ablate", "--frame", self.at("frame"), "--arms", arms, *options)
        self.advprior("rank ablate", *ablate, out="ablation", reads=("frame",), also=(arms, *self._own_rankers(arms)))
        self._after(FIRST)

    def _arms(self) -> str:
        if self.config.arms.file is not None:
            return self.config.arms.file
        path = f"{HIDDEN}/arms.yaml"
        self.files[path] = arms_text(self.config, self.project.folder)
        return path

    def _own_rankers(self, arms: str) -> tuple[str, ...]:
        """Modules beside the project file that arms name as rankers: another source is another result."""
        path = self.project.folder / arms
        text = self.files.get(arms) or (path.read_text() if path.is_file() else "")
        return tuple(name for name in ranker_modules(text) if (self.project.folder / name).is_file())

    def retrieval(self) -> None:
        """Two towers, the quota of predicted advertisers' ads, and candidates × ranker."""
        assert self.config.retrieval is not None
        self._towers()
        chosen = {"--k": self.config.retrieval.k, "--top": self.config.retrieval.top}
        options = tuple(word for name, value in chosen.items() if value is not None for word in (name, str(value)))
        words = ("rank", "candidates", "--tables", self.at(TABLES), "--repo", self.repo, "--towers", self.at("towers"))
        controls = control_names(self.config, self.project.folder)
        options += ("--controls", ",".join(controls)) if controls else ()
        views = self.views()
        self.advprior("rank candidates", *words, *options, out="candidates", reads=(TABLES, "towers"), also=views)
        self._after("feast apply")
        self._two_by_two()

    def both_steps(self) -> None:
        """Retrieval and ranking together at one cut-off, for what is pooled; the curve of quotas is left out."""
        self._towers()
        self._two_by_two()

    def _towers(self) -> None:
        tables, seed = self.at(TABLES), ("--seed", str(self.config.seed))
        self.advprior("rank towers", "rank", "towers", "--tables", tables, *seed, out="towers", reads=(TABLES,))

    def _two_by_two(self) -> None:
        folders = {"tables": TABLES, "frame": "frame", "ablation": "ablation", "towers": "towers"}
        words = tuple(word for name, folder in folders.items() for word in (f"--{name}", self.at(folder)))
        sizes = slate_sizes(self.slate_size, always=True) if self.folder else None
        words += ("--arm", self.config.served.name, *(() if sizes is None else ("--k", str(sizes[0]))))
        self.advprior("rank two-by-two", "rank", "two-by-two", *words, out="two_by_two", reads=tuple(folders.values()))

    def rankers(self) -> None:
        """The ranker that is served, and the one that answers where there is no prior."""
        arms, seed = self._arms(), ("--seed", str(self.config.seed))
        for name, service, out in (
            ("rank train", prior_service(self.config.served.name), "ranker"),
            ("rank train baseline", BASELINE_SERVICE, "ranker_baseline"),
        ):
            train = ("rank", "train", "--frame", self.at("frame"), "--service", service, "--arms", arms, *seed)
            self.advprior(name, *train, out=out, reads=("frame",), also=(arms,), kind="rank train")

    def report(self) -> None:
        """One page that says it all, with the facts of the served prior's runs."""
        assert self.config.report is not None
        name = self.config.served.name
        runs = tuple(self.at(run) for run in (f"models/{name}", f"models/{name}/onnx", f"priors/{name}"))
        words = tuple(word for run in runs for word in ("--predictor-run", run))
        more: tuple[str, ...] = ()
        if self.config.retrieval is not None:
            more = (self.at("candidates"), self.at("two_by_two"))
            words += ("--candidates", more[0], "--two-by-two", more[1])
        words += self.config.price_options
        report = ("rank", "report", self.at("ablation"), *words)
        self.advprior("rank report", *report, out=self.config.report.folder, reads=("ablation",), also=(*runs, *more))

    def materialize(self) -> None:
        """What is served goes online, up to the newest snapshot."""
        start, end = "START", "END"
        if self.times is not None:
            # the newest snapshot is available a lag after it, which may be past the end of the data
            last = self.times.end + self.times.lag + timedelta(seconds=1)
            start, end = (moment.strftime("%Y-%m-%dT%H:%M:%S") for moment in (self.times.start, last))
        online = (*(f"{self.repo}/data/{name}" for name in _PROFILE_AND_HISTORY), self.view(self.config.served.name))
        self.feast("feast materialize", "materialize", online, start, end, exists=("data/online_store.db",))
        self._after("feast apply", "rank frame", "rank candidates")
