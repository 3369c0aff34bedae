"""What is compared: arms, read from one commented YAML (`arms.yaml` here is the default and the template).

An arm is the baseline's features plus the groups, or single features, of the frame that it adds. Which of them is
the baseline, a control, the treatment or the placebo is said in the file, because the verdict depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, groups_of
from advprior.store.keys import explain
from advprior.store.project_files import parsed_yaml
from ranking.models.config import Objective, RankerConfig
from ranking.models.missing import missing_fix

Role = Literal["baseline", "control", "treatment", "placebo"]
#: What a control lacks of the treatments that it is a control of: pre-training, the network, advertisers' names.
Kind = Literal["random_weights", "lexical", "masked"]


class Arm(BaseModel):
    """One feature set under comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    service: str = Field(default="", validate_default=True)
    label: str = Field(min_length=1)
    role: Role = "treatment"
    adds: tuple[str, ...] = ()
    optional: bool = False
    objective: Objective | None = None
    monotone: bool | None = None
    start_from: str | None = None
    of: tuple[str, ...] = ()
    kind: Kind | None = None
    ranker: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.<>]+$")
    params: dict[str, Any] = Field(default_factory=dict)
    _given: Any = PrivateAttr(default=None)

    @property
    def given(self) -> Any:
        """The estimator, class or function that was given in Python as its ranker, where it is none to import."""
        return self._given

    @field_validator("service")
    @classmethod
    def _named_after_itself(cls, service: str, info: ValidationInfo) -> str:
        return service or f"{info.data.get('name', '')}_v1"

    @model_validator(mode="after")
    def _lightgbm_alone_has_them(self) -> Arm:
        own = (self.objective, self.monotone, self.start_from)
        if self.ranker is not None and any(value is not None for value in own):
            raise ValueError("objective, monotone and start_from are LightGBM's: an arm with its own ranker has none")
        return self

    @field_validator("of", mode="before")
    @classmethod
    def _one_or_several(cls, of: Any) -> Any:
        return () if of is None else (of,) if isinstance(of, str) else of

    @field_serializer("of")
    def _as_it_was_written(self, of: tuple[str, ...]) -> str | tuple[str, ...] | None:
        """A name, as every version reads it; a list only where it has several."""
        return of if len(of) > 1 else of[0] if of else None

    @field_validator("adds")
    @classmethod
    def _groups_or_names(cls, adds: tuple[str, ...]) -> tuple[str, ...]:
        """A pattern for a whole group, as arms files had it once, is the group; any other pattern is refused."""
        plain = tuple(entry.removesuffix("_*") for entry in adds)
        patterns = [entry for entry in plain if set(entry) & set("*?[]")]
        if patterns:
            raise ValueError(
                f"patterns are not read: {', '.join(patterns)}; write a group, such as prior_llm, or features by name, "
                "such as prior_llm_rank"
            )
        return plain

    @property
    def is_baseline(self) -> bool:
        """Whether every other arm is measured against it."""
        return self.role == "baseline"


class Arms(BaseModel):
    """The arms of one ablation and the ranker that all of them train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arms: tuple[Arm, ...]
    ranker: RankerConfig = RankerConfig()

    @model_validator(mode="after")
    def _one_baseline(self) -> Arms:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"arm names must be unique; twice: {', '.join(twice)}")
        baselines = [arm.name for arm in self.arms if arm.is_baseline]
        if len(baselines) != 1:
            raise ValueError(
                f"exactly one arm has `role: baseline`; found {len(baselines)}: {', '.join(baselines) or 'none'}"
            )
        strays = [arm.name for arm in self.arms if arm.of and arm.role != "placebo" and arm.kind is None]
        if strays:
            raise ValueError(
                f"`of` names whose priors a placebo shuffles, or of which a control of a `kind` is; {', '.join(strays)}"
            )
        strays = [arm.name for arm in self.arms if arm.role == "placebo" and len(arm.of) > 1]
        if strays:
            raise ValueError(f"a placebo shuffles the priors of one arm: `of` names one; {', '.join(strays)}")
        strays = [arm.name for arm in self.arms if arm.kind is not None and (arm.role != "control" or not arm.of)]
        if strays:
            raise ValueError(f"`kind` is for controls, with `of`, the arms that they lack it of; {', '.join(strays)}")
        for arm in self.arms:
            try:
                self.config_of(arm)
            except ValidationError as error:
                raise ValueError(f"arm {arm.name}: {explain(error, RankerConfig)}") from error
        return self

    @property
    def baseline(self) -> Arm:
        """The one arm with `role: baseline`."""
        return self.of_role("baseline")[0]

    def config_of(self, arm: Arm) -> RankerConfig:
        """The ranker's settings with what the arm changes of them."""
        own = {"objective": arm.objective, "monotone": arm.monotone, "start_from": arm.start_from}
        config = self.ranker.model_copy(update={name: value for name, value in own.items() if value is not None})
        if arm.ranker is not None or not arm.params:
            return config
        return config.changed(**arm.params)

    def method_of(self, arm: Arm) -> tuple[Any, ...]:
        """What trains an arm, apart from its features: its objective, or its own ranker, and its own parameters."""
        return (self.config_of(arm).objective, arm.ranker, arm.params)

    def of_role(self, role: Role) -> list[Arm]:
        """Arms of one role, in the file's order."""
        return [arm for arm in self.arms if arm.role == role]

    @property
    def on_trial(self) -> list[Arm]:
        """The treatments; without any, the controls, which are then all that can be said something of."""
        return self.of_role("treatment") or self.of_role("control")

    def placebo_of(self, treatment: Arm) -> Arm | None:
        """The placebo that imitates a treatment; for the first treatment any, where none was made for it."""
        placebos = self.of_role("placebo")
        named = [arm for arm in placebos if treatment.name in arm.of]
        if not named and self.of_role("treatment")[:1] == [treatment]:
            named = [arm for arm in placebos if not arm.of] or placebos
        return named[0] if named else None

    def kin_of(self, treatment: Arm) -> dict[Kind, Arm]:
        """The controls that lack one thing of a treatment, by what that is."""
        return {arm.kind: arm for arm in self.of_role("control") if arm.kind is not None and treatment.name in arm.of}

    def controls_of(self, treatment: Arm) -> list[Arm]:
        """What a treatment is held against: controls that are measured by default or, like itself, when named.

        A variant is one of many: each against everything would widen every interval and tell little. Where variants
        are all that is measured, each is held against every control.
        """
        alone = all(arm.optional for arm in self.of_role("treatment"))
        return [arm for arm in self.of_role("control") if alone or arm.optional == treatment.optional]

    def only(self, *names: str) -> Arms:
        """The baseline and these arms, which are then no longer optional.

        Raises
        ------
        AdvpriorError
            ``RNK021`` when no arm has a name.
        """
        chosen = {self.find(name).name for name in names} | {self.baseline.name}
        arms = (arm.model_copy(update={"optional": False}) for arm in self.arms if arm.name in chosen)
        return self.model_copy(update={"arms": tuple(arms)})

    def with_arm(self, name: str, adds: Sequence[str], **options: Unpack[ArmOptions]) -> Arms:
        """These arms and one more.

        Parameters
        ----------
        name : str
            New among the arms.
        adds : sequence of str
            Groups or features of the frame, on top of the baseline's.
        label : str, optional
            What a report calls it.
        role : str
            ``treatment``, ``control`` or ``placebo``. The verdict is about the first treatment.
        kind : str
            Of a control, what it lacks of the arms that ``of`` names: ``random_weights``, ``lexical`` or ``masked``.
        of : str or sequence of str
            Those arms; of a placebo, the one that it imitates.
        service : str
            The feature service that would serve it; only a ranker that is served needs one.
        ranker : str, or an object
            What ranks in LightGBM's place: an import path ``module:name``, or an estimator with scikit-learn's ``fit``
            and ``predict_proba``, or a class or function that makes one.
        params : dict
            Keyword arguments of that class or function; without a ranker, LightGBM's settings for this arm.

        Examples
        --------
        >>> arms = load_arms().only("neighbours").with_arm("hour", ["prior_hour"])
        >>> [arm.name for arm in arms.arms]
        ['baseline', 'neighbours', 'hour']
        """
        ranker = options.pop("ranker", None)
        with _coded(f"arm {name}"):
            path = ranker if ranker is None or isinstance(ranker, str) else _path_of(ranker)
            described = {"name": name, "label": f"+ {name}", "adds": tuple(adds), "ranker": path, **options}
            arm = Arm.model_validate({key: value for key, value in described.items() if value is not None})
            if path is not ranker:
                arm._given = ranker
            return Arms(arms=(*self.arms, arm), ranker=self.ranker)

    def with_ranker(self, **changes: Any) -> Arms:
        """The same arms, trained with other settings of LightGBM.

        >>> load_arms().with_ranker(num_leaves=63, learning_rate=0.05).ranker.num_leaves
        63
        """
        with _coded("the ranker's settings"):
            return Arms(arms=self.arms, ranker=self.ranker.changed(**changes))

    def find(self, name: str) -> Arm:
        """The arm with this name or feature service.

        Raises
        ------
        AdvpriorError
            ``RNK021`` when no arm has it.
        """
        for arm in self.arms:
            if name in (arm.name, arm.service):
                return arm
        raise AdvpriorError(
            "RNK021",
            "no arm has this name or feature service",
            where="--arm, --service",
            actual=name,
            expected=", ".join(arm.name for arm in self.arms),
            fix="name one of these, or add an arm to arms.yaml",
        )


class ArmOptions(TypedDict, total=False):
    """What `Arms.with_arm` takes by name."""

    label: str
    role: Role
    kind: Kind
    of: str | Sequence[str]
    service: str
    ranker: Any
    params: dict[str, Any]


def _path_of(ranker: Any) -> str:
    """Where an object comes from, for people: an arm with it cannot be read from a file."""
    source = ranker if isinstance(ranker, type) or not hasattr(ranker, "fit") else type(ranker)
    return f"{getattr(source, '__module__', 'python')}:{getattr(source, '__qualname__', type(ranker).__name__)}"


@contextmanager
def _coded(where: str) -> Iterator[None]:
    """What pydantic refuses, as a coded error."""
    try:
        yield
    except ValidationError as error:
        raise AdvpriorError("CFG001", "these arms are not valid", where=where, actual=explain(error, Arms)) from error


def load_arms(path: Path | None = None) -> Arms:
    """Read an arms file; the package's own when no path is given.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when it is missing, no YAML, or says something that arms do not know.
    """
    where = "the package's arms.yaml" if path is None else str(path)
    fix = "start from the commented template that `advprior init` writes"
    if path is not None and not path.is_file():
        raise AdvpriorError("CFG001", "the arms file is missing", where=where, fix=fix)
    text = files("ranking.models").joinpath("arms.yaml").read_text() if path is None else path.read_text()
    try:
        return Arms.model_validate(parsed_yaml(text))
    except yaml.YAMLError as error:
        raise AdvpriorError(
            "CFG001", "the arms file is not YAML", where=where, actual=str(error).replace("\n", " "), fix=fix
        ) from error
    except ValidationError as error:
        problems = explain(error, Arms)
        raise AdvpriorError("CFG001", "the arms file is not valid", where=where, actual=problems, fix=fix) from error


def names_feature(entry: str, feature: Feature) -> bool:
    """Whether what an arm adds means a feature: by its group or by its name."""
    return entry in (feature.group, feature.name)


def arm_features(arm: Arm, features: Sequence[Feature]) -> list[Feature]:
    """Features of one arm, in the frame's order: the baseline's, plus what the arm adds.

    Raises
    ------
    AdvpriorError
        ``RNK022`` when something that the arm adds is neither a group nor a feature of the frame.

    Examples
    --------
    >>> frame = [Feature("history_all", "history", "user_history")]
    >>> frame += [Feature(f"prior_llm_{name}", "prior_llm", "prior_llm") for name in ("rank", "log_prob")]
    >>> arm = Arm(name="llm_rank", service="ranker_with_priors_v1", label="rank alone", adds=["prior_llm_rank"])
    >>> [feature.name for feature in arm_features(arm, frame)]
    ['history_all', 'prior_llm_rank']
    """
    unmatched = [entry for entry in arm.adds if not any(names_feature(entry, feature) for feature in features)]
    if unmatched:
        raise AdvpriorError(
            "RNK022",
            f"the frame has no feature that arm `{arm.name}` adds",
            where=", ".join(unmatched),
            actual=f"groups of the frame: {', '.join(groups_of(features)) or 'none'}",
            expected="a group of the frame, or one of its features by name",
            fix=missing_fix(unmatched, features),
        )
    return [f for f in features if f.in_baseline or any(names_feature(entry, f) for entry in arm.adds)]


def predictors_of(arm: Arm, features: Sequence[Feature]) -> list[str]:
    """Predictors whose priors, of whatever age, an arm adds."""
    added = [f.predictor for f in features if f.predictor and any(names_feature(entry, f) for entry in arm.adds)]
    return list(dict.fromkeys(added))
