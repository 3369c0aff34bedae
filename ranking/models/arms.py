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
    field_validator,
    model_validator,
)

from advprior.store.contract import prior_service
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, groups_of
from advprior.store.keys import explain
from ranking.models.config import Objective, RankerConfig
from ranking.models.missing import missing_fix

Role = Literal["baseline", "control", "treatment", "placebo"]
#: What a control lacks of the one treatment that it is a control of: pre-training, the network, advertisers' names.
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
    of: str | None = None
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
        strays = [arm.name for arm in self.arms if arm.of is not None and arm.role != "placebo" and arm.kind is None]
        if strays:
            raise ValueError(
                f"`of` names whose priors a placebo shuffles, or of which a control of a `kind` is; {', '.join(strays)}"
            )
        strays = [arm.name for arm in self.arms if arm.kind is not None and (arm.role != "control" or arm.of is None)]
        if strays:
            raise ValueError(f"`kind` is for controls, with `of`, the arm that they lack it of; {', '.join(strays)}")
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
        named = [arm for arm in placebos if arm.of == treatment.name]
        if not named and self.of_role("treatment")[:1] == [treatment]:
            named = [arm for arm in placebos if arm.of is None] or placebos
        return named[0] if named else None

    def kin_of(self, treatment: Arm) -> dict[Kind, Arm]:
        """The controls that lack one thing of a treatment, by what that is."""
        return {arm.kind: arm for arm in self.of_role("control") if arm.kind is not None and arm.of == treatment.name}

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
        return Arms.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise AdvpriorError(
            "CFG001", "the arms file is not YAML", where=where, actual=str(error).replace("\n", " "), fix=fix
        ) from error
    except ValidationError as error:
        problems = explain(error, Arms)
        raise AdvpriorError("CFG001", "the arms file is not valid", where=where, actual=problems, fix=fix) from error


def _adds(entry: str, feature: Feature) -> bool:
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
    unmatched = [entry for entry in arm.adds if not any(_adds(entry, feature) for feature in features)]
    if unmatched:
        raise AdvpriorError(
            "RNK022",
            f"the frame has no feature that arm `{arm.name}` adds",
            where=", ".join(unmatched),
            actual=f"groups of the frame: {', '.join(groups_of(features)) or 'none'}",
            expected="a group of the frame, or one of its features by name",
            fix=missing_fix(unmatched, features),
        )
    return [f for f in features if f.in_baseline or any(_adds(entry, f) for entry in arm.adds)]


def predictors_of(arm: Arm, features: Sequence[Feature]) -> list[str]:
    """Predictors whose priors, of whatever age, an arm adds."""
    added = [f.predictor for f in features if f.predictor and any(_adds(entry, f) for entry in arm.adds)]
    return list(dict.fromkeys(added))


def with_available(
    arms: Arms, features: Sequence[Feature], named: Sequence[str] = (), *, optional: bool = False
) -> tuple[Arms, dict[str, str]]:
    """Arms that the frame can feed, and what the others lack.

    Parameters
    ----------
    arms : Arms
    features : sequence of Feature
        Of the frame.
    named : sequence of str
        Names of arms that must be measured: these and the baseline, no others. Without any: all but optional ones.
    optional : bool
        Without any named: optional ones too.

    Returns
    -------
    Arms
    dict of str to str
        Arms left out because no prior of theirs is in the frame, and what they would add.

    Raises
    ------
    AdvpriorError
        ``RNK021`` for an unknown name, ``RNK022`` when a named arm lacks its features, or when any arm adds a feature
        that a prior in the frame does not have: a slip of the pen, not a predictor that was not run.
    """
    names = {arms.find(name).name for name in named}
    usable: list[Arm] = []
    left_out: dict[str, str] = {}
    for arm in arms.arms:
        if not arm.is_baseline and (arm.name not in names if names else arm.optional and not optional):
            continue
        absent = [entry for entry in arm.adds if not any(_adds(entry, feature) for feature in features)]
        if absent and not names and not _misspelt(arm, absent, features):
            left_out[arm.name] = ", ".join(absent)
            continue
        arm_features(arm, features)
        usable.append(arm)
    return Arms(arms=tuple(usable), ranker=arms.ranker), left_out


def _misspelt(arm: Arm, absent: Sequence[str], features: Sequence[Feature]) -> bool:
    """Whether the frame has the prior that the arm's service serves, and an absent entry would be a feature of it."""
    served = {f.source for f in features if f.predictor is not None and prior_service(f.predictor) == arm.service}
    return any(entry.startswith(f"{view}_") for entry in absent for view in served)
