"""`advprior.yaml`: what a project measures, on one screen. Read and checked here; every key but `tables` has a default.

What fits the data only (time plan, validation days, horizons) is no key of this file: it is derived in `plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from advprior.pipeline.presets import FEW, FULL, STALE_WEEKS
from advprior.store.contract import LLM, PLACEBO, PREDICTORS
from advprior.store.device import AUTO, PATTERN
from advprior.store.errors import AdvpriorError
from advprior.store.project_files import DECIDE_ON, PROJECT_FILE, parsed_yaml

HIDDEN = ".advprior"  # folder of what a run keeps for itself
OLD_RECORD = ".advprior.json"  # what earlier versions of `init` left, without a project file

#: Public data that `tables.example` names, and the options that each takes beside it.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "complete_journey": ("households",),
    "clicks": ("users", "advertisers", "weeks"),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tables(_Strict):
    """Where the tables come from: the user's own through a mapping, public ones, or canonical ones that are ready."""

    mapping: str | None = None
    example: str | None = None
    folder: str | None = None
    households: int | Literal["all"] | None = None
    users: int | None = Field(default=None, ge=1)
    advertisers: int | None = Field(default=None, ge=2)
    weeks: int | None = Field(default=None, ge=1)

    @property
    def options(self) -> dict[str, str]:
        """What is said of the example, by name."""
        names = EXAMPLES.get(self.example or "", ())
        return {name: str(getattr(self, name)) for name in names if getattr(self, name) is not None}

    @model_validator(mode="after")
    def _one_source(self) -> Tables:
        sources = [name for name in ("mapping", "example", "folder") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"give one of mapping, example, folder; this gives {', '.join(sources) or 'none'}")
        if self.example is not None and self.example not in EXAMPLES:
            raise ValueError(f"example: there is no {self.example!r}; there are {', '.join(EXAMPLES)}")
        every = {option for options in EXAMPLES.values() for option in options}
        strays = [name for name in sorted(every - set(EXAMPLES.get(self.example or "", ()))) if getattr(self, name)]
        if strays:
            owners = [name for name, options in EXAMPLES.items() if strays[0] in options]
            raise ValueError(f"{strays[0]}: an option of example: {', '.join(owners)}")
        if isinstance(self.households, int) and self.households < 1:
            raise ValueError("households: a positive number, or all")
        return self


class Prior(_Strict):
    """One prior: who predicts, with which settings, over what."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    predictor: str
    settings: dict[str, Any] = Field(default_factory=dict)
    settings_file: str | None = None
    by: Literal["advertiser", "advertiser_category"] = "advertiser"
    placebo: bool = False
    role: Literal["control", "treatment"] | None = None
    label: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, raw: Any) -> Any:
        """A bare name is a predictor with its defaults; settings may be the path of a YAML file."""
        raw = {"name": raw} if isinstance(raw, str) else dict(raw) if isinstance(raw, dict) else raw
        if isinstance(raw, dict):
            raw.setdefault("predictor", raw.get("name"))
            if isinstance(raw.get("settings"), str):
                raw["settings_file"] = raw.pop("settings")
            elif raw.get("settings", 0) is None:  # a key with all of its lines commented out
                raw.pop("settings")
        return raw

    @model_validator(mode="after")
    def _predictor_exists(self) -> Prior:
        predictors = [name for name in PREDICTORS if name not in (PLACEBO, "twin")]
        if self.predictor not in predictors:
            raise ValueError(f"no predictor is named {self.predictor!r}; name one of {', '.join(predictors)}")
        if self.name.startswith(PLACEBO):
            raise ValueError("a placebo is asked for by `placebo: true` of the prior that it shuffles")
        return self

    @property
    def placebo_name(self) -> str | None:
        """What the same prior, shuffled between users, is published as."""
        if not self.placebo:
            return None
        return PLACEBO if self.name == LLM else f"{PLACEBO}_{self.name}"


class ArmsConfig(_Strict):
    """How arms are measured, and an arms file where the generated one does not do."""

    file: str | None = None
    seeds: int = Field(default=3, ge=1)
    replicates: int = Field(default=1000, ge=20)
    variants: bool = False
    stale: tuple[int, ...] = ()
    ranker: dict[str, Any] = Field(default_factory=dict)


class Retrieval(_Strict):
    """Candidates with and without priors."""

    k: int | None = Field(default=None, ge=1)
    top: int | None = Field(default=None, ge=1)


class Report(_Strict):
    """Where the report goes."""

    folder: str = "report"


class Refresh(_Strict):
    """The daily refresh.

    ``export`` is a command of the user's own that brings the files of the mapping up to date; ``check`` are options
    that the service runs with, for its preflight.
    """

    export: str | None = None
    keep_snapshots: int = Field(default=60, ge=2)
    keep_runs: int = Field(default=7, ge=1)
    new_advertisers: Literal["leave_out", "refuse"] = "leave_out"
    check: str = "--no-api-key"


class Budget(_Strict):
    """What a run may cost by its forecast; it stops before the long steps where that is more."""

    minutes: float | None = Field(default=None, gt=0)
    memory_gb: float | None = Field(default=None, gt=0)
    disk_gb: float | None = Field(default=None, gt=0)


class Clusters(_Strict):
    """Semantic clusters of ads and events, whose counts are features of the ranker; ``base`` as ``data clusters`` has.

    ``shuffled``: groups of the same sizes at random, the placebo.
    """

    base: str | None = None
    number: int = Field(default=64, ge=2)
    shuffled: bool = False


class Disk(_Strict):
    """What stays on disk once a whole run has ended.

    ``scores_mb`` is what the scored arrays of priors that are not served may take; above it those go that are cheap
    to score again, never one that took over a minute of processor time. None: all stay. What was removed is scored
    again when a frame is made anew.
    """

    scores_mb: float | None = Field(default=150, ge=0)


class Export(_Strict):
    """The form of the LLM's graph. Any but the default is for a GPU, and passes a quality gate on the device."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    attention: Literal["blocks", "fused"] = "blocks"


class Price(_Strict):
    """What an hour of computing costs, for the value that a conversion must have."""

    cpu_hour: float | None = Field(default=None, gt=0)
    gpu_hour: float | None = Field(default=None, gt=0)
    currency: str = Field(default="USD", min_length=1, max_length=8)

    @model_validator(mode="after")
    def _some_price(self) -> Price:
        if self.cpu_hour is None and self.gpu_hour is None:
            raise ValueError("give cpu_hour, gpu_hour, or both: what an hour of one costs")
        return self


def _switch(value: Any) -> Any:
    """``true`` is all defaults, ``false`` is none of it."""
    return {} if value is True else None if value is False else value


def _preset(value: Any) -> Any:
    """``few`` and ``full`` are lists with a name."""
    return {"few": list(FEW), "full": list(FULL)}.get(value, value) if isinstance(value, str) else value


def _arms(value: Any) -> Any:
    return {"file": value} if isinstance(value, str) else value


class ProjectConfig(_Strict):
    """The whole `advprior.yaml`."""

    tables: Tables
    priors: Annotated[tuple[Prior, ...], BeforeValidator(_preset)] = Field(default=FEW, validate_default=True)
    arms: Annotated[ArmsConfig, BeforeValidator(_arms)] = ArmsConfig()
    first_answer: bool = True
    clusters: Annotated[Clusters | None, BeforeValidator(_switch)] = None
    retrieval: Annotated[Retrieval | None, BeforeValidator(_switch)] = Retrieval()
    report: Annotated[Report | None, BeforeValidator(_switch)] = Report()
    serve: str | None = None
    refresh: Refresh = Refresh()
    decide_on: str | None = None
    price: Price | None = None
    budget: Budget = Budget()
    disk: Disk = Disk()
    device: str = Field(default=AUTO, pattern=PATTERN)
    export: Export = Export()
    origins: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _full(cls, raw: Any) -> Any:
        """`priors: full` measures old priors and variants, too, where `arms` does not say otherwise."""
        if isinstance(raw, dict) and raw.get("priors") == "full" and isinstance(raw.get("arms", {}), dict):
            return {**raw, "arms": {"variants": True, "stale": STALE_WEEKS, **raw.get("arms", {})}}
        return raw

    @model_validator(mode="after")
    def _names(self) -> ProjectConfig:
        names = [prior.name for prior in self.priors]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"priors: names must differ; twice: {', '.join(twice)}")
        if not names:
            raise ValueError("priors: name one at least; popularity and neighbours need no LLM and take seconds")
        if self.decide_on is not None and self.decide_on not in DECIDE_ON:
            raise ValueError(f"decide_on: {self.decide_on!r} is none of {', '.join(DECIDE_ON)}")
        if self.serve is not None and self.serve not in names:
            raise ValueError(
                f"serve: {self.serve!r} is none of the priors {', '.join(names)}; name one, or leave serve out"
            )
        reader = self.cluster_reader
        if reader is not None and reader.predictor != LLM:
            raise ValueError(
                f"clusters.base: models/{reader.name} is of predictor {reader.predictor}; name the run of an LLM, "
                "or any encoder"
            )
        return self

    @property
    def cluster_reader(self) -> Prior | None:
        """The prior whose fitted run reads the texts that clusters are made of; None where that is another encoder."""
        base = (self.clusters or Clusters()).base or ""
        run = Path(base.partition("@")[0])
        return next((prior for prior in self.priors if run == Path("models", prior.name)), None)

    @property
    def cluster_options(self) -> tuple[str, ...]:
        """How clusters are made, as options of ``data clusters``."""
        clusters = self.clusters or Clusters()
        options: tuple[str, ...] = () if clusters.base is None else ("--base", clusters.base)
        options += ("--number", str(clusters.number), "--seed", str(self.seed))
        return *options, *(("--shuffled",) if clusters.shuffled else ())

    @property
    def device_option(self) -> tuple[str, ...]:
        """What tells a command the device; nothing for ``auto``."""
        return ("--device", self.device) if self.device != AUTO else ()

    @property
    def price_options(self) -> tuple[str, ...]:
        """What an hour of computing costs, as options of ``rank report``."""
        price = self.price
        if price is None:
            return ()
        hours = {"--cpu-hour": price.cpu_hour, "--gpu-hour": price.gpu_hour}
        options = tuple(word for name, value in hours.items() if value is not None for word in (name, f"{value:g}"))
        return *options, "--currency", price.currency

    @property
    def served(self) -> Prior:
        """Whose priors go online: the one that `serve` names, else the LLM's, else the last."""
        wanted = self.serve or LLM
        return next((prior for prior in self.priors if prior.name == wanted), self.priors[-1])


@dataclass(frozen=True)
class Project:
    """A folder with an `advprior.yaml`, read."""

    folder: Path
    config: ProjectConfig


def read_project(folder: Path) -> Project:
    """Read and check the project file of a folder.

    Raises
    ------
    AdvpriorError
        ``CFG013`` when there is none, ``CFG001`` when it is no YAML mapping, ``CFG002`` for unknown keys and wrong
        values.
    """
    import yaml

    from advprior.store.keys import explain

    path = Path(folder) / PROJECT_FILE
    if not path.is_file():
        raise _no_project(Path(folder))
    try:
        raw = parsed_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AdvpriorError(
            "CFG001", "the project file cannot be read", where=str(path), actual=" ".join(str(error).split())[:200]
        ) from error
    if not isinstance(raw, dict):
        raise AdvpriorError("CFG001", "the project file is no mapping", where=str(path), actual=type(raw).__name__)
    try:
        return Project(Path(folder), ProjectConfig.model_validate(raw))
    except ValidationError as error:
        raise AdvpriorError(
            "CFG002",
            "the project file has keys or values that do not fit",
            where=str(path),
            actual=explain(error, ProjectConfig, also=_keys_of_others()),
            fix="edit that line; `advprior init NEW_DIR` writes a commented file to compare with",
        ) from error


def _keys_of_others() -> list[str]:
    """Keys that belong below `arms.ranker` and a prior's `settings`, where the project file itself does not look."""
    from advprior.pipeline.own_defaults import shipped_arms
    from advprior.predictors.registry import KINDS, predictor_class
    from advprior.store.keys import key_paths

    models = {type(predictor_class(kind).settings({})) for kind in KINDS}
    settings = sorted({path for model in models for path in key_paths(model)})
    return [f"arms.ranker.{name}" for name in shipped_arms()["ranker"]] + [
        f"priors.settings.{name}" for name in settings
    ]


def _no_project(folder: Path) -> AdvpriorError:
    old = (folder / OLD_RECORD).is_file()
    return AdvpriorError(
        "CFG013",
        "no project here" if not old else "a project of an earlier version: it has no project file yet",
        where=str(folder),
        actual=f"no {PROJECT_FILE}",
        expected=f"a folder with {PROJECT_FILE}, made by `advprior init`",
        fix=f"advprior init {folder}" + ("   (keeps what you edited)" if old else ""),
    )
