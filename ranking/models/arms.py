"""What is compared: arms, read from one commented YAML (`arms.yaml` here is the default and the template).

An arm is the baseline's features plus the frame columns that its patterns name. Which of them is the
baseline, a control, the treatment or the placebo is said in the file, because the verdict depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from advprior.store.contract import CONTEXT_PREFIX, PRIOR_VIEW_PREFIX, PROFILE_PREFIX
from advprior.store.errors import AdvpriorError

Role = Literal["baseline", "control", "treatment", "placebo"]

#: Prefixes of a frame's feature columns; the prefix is the feature's group.
FEATURE_PREFIXES = (PROFILE_PREFIX, "activity_", "ad_", CONTEXT_PREFIX, "history_", PRIOR_VIEW_PREFIX)
#: Columns that carry a feature's prefix but are no feature.
NOT_FEATURES = frozenset({"ad_id"})
#: What the frame says of one prior: what stands before these is whose it is.
PRIOR_FEATURES = ("interest_log_prob", "log_prob", "log_ratio", "rank", "top20", "entropy", "age_days", "missing")

Objective = Literal["binary", "lambdarank"]


class Arm(BaseModel):
    """One feature set under comparison."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    service: str = Field(min_length=1)
    label: str = Field(min_length=1)
    role: Role = "treatment"
    adds: tuple[str, ...] = ()
    optional: bool = False
    objective: Objective | None = None
    monotone: bool | None = None
    of: str | None = None

    @property
    def is_baseline(self) -> bool:
        return self.role == "baseline"


class RankerConfig(BaseModel):
    """Settings of the LightGBM ranker, the same for every arm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=0.03, gt=0, le=1)
    num_leaves: int = Field(default=31, ge=2)
    min_data_in_leaf: int = Field(default=200, ge=1)
    feature_fraction: float = Field(default=0.7, gt=0, le=1)
    bagging_fraction: float = Field(default=0.8, gt=0, le=1)
    lambda_l2: float = Field(default=5.0, ge=0)
    objective: Objective = "binary"
    monotone: bool = False
    max_rounds: int = Field(default=1000, ge=1)
    patience: int = Field(default=40, ge=1)
    calibration: Literal["platt", "isotonic"] = "platt"
    threads: int = Field(default=2, ge=1)


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
        strays = [arm.name for arm in self.arms if arm.of is not None and arm.role != "placebo"]
        if strays:
            raise ValueError(f"`of` is for placebos: it names the arm whose priors they shuffle; {', '.join(strays)}")
        return self

    @property
    def baseline(self) -> Arm:
        return self.of_role("baseline")[0]

    def config_of(self, arm: Arm) -> RankerConfig:
        """The ranker's settings with what the arm changes of them."""
        own = {"objective": arm.objective, "monotone": arm.monotone}
        return self.ranker.model_copy(update={name: value for name, value in own.items() if value is not None})

    def of_role(self, role: Role) -> list[Arm]:
        """Arms of one role, in the file's order."""
        return [arm for arm in self.arms if arm.role == role]

    def placebo_of(self, treatment: Arm) -> Arm | None:
        """The placebo that imitates a treatment; for the first treatment any, where none was made for it."""
        placebos = self.of_role("placebo")
        named = [arm for arm in placebos if arm.of == treatment.name]
        if not named and treatment == self.of_role("treatment")[0]:
            named = [arm for arm in placebos if arm.of is None] or placebos
        return named[0] if named else None

    def controls_of(self, treatment: Arm) -> list[Arm]:
        """What a treatment is held against: controls that are measured by default or, like itself, when named.

        A variant is one of many: each against everything would widen every interval and tell little. Where variants
        are all that is measured, each is held against every control.
        """
        alone = all(arm.optional for arm in self.of_role("treatment"))
        return [arm for arm in self.of_role("control") if alone or arm.optional == treatment.optional]

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
            "no arm has this feature service",
            where="--service",
            actual=name,
            expected=", ".join(arm.service for arm in self.arms),
            fix="name one of these, or add an arm to arms.yaml",
        )


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
        found = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise AdvpriorError("CFG001", "the arms file is not valid", where=where, actual=found, fix=fix) from error


def feature_columns(columns: Sequence[str]) -> list[str]:
    """Feature columns among a frame's columns, in the frame's order.

    >>> feature_columns(["impression_id", "ad_id", "ad_clicks", "history_all", "segment_never_ad", "label"])
    ['ad_clicks', 'history_all']
    """
    return [c for c in columns if c.startswith(FEATURE_PREFIXES) and c not in NOT_FEATURES]


def group_of(column: str) -> str:
    """Group of a feature, or of a pattern of features: its prefix; for a prior, its predictor too.

    >>> group_of("history_advertiser_4w"), group_of("prior_zero_shot_log_prob"), group_of("prior_llm_*")
    ('history', 'prior_zero_shot', 'prior_llm')
    """
    parts = column.split("_")
    if not column.startswith(PRIOR_VIEW_PREFIX) or len(parts) < 3:
        return parts[0]
    for feature in (*PRIOR_FEATURES, "*"):
        if column.endswith(f"_{feature}"):
            return column.removesuffix(f"_{feature}")
    return "_".join(parts[:2])


def _adds(pattern: str, column: str) -> bool:
    """Whether a pattern means a column: ``prior_llm_*`` is not of a predictor ``llm_pair``.

    >>> [_adds("prior_llm_*", column) for column in ("prior_llm_rank", "prior_llm_pair_rank")]
    [True, False]
    """
    whole = pattern.endswith("_*") and len(pattern.split("_")) > 2
    return fnmatchcase(column, pattern) and (not whole or group_of(column) == group_of(pattern))


def arm_features(arm: Arm, columns: Sequence[str]) -> list[str]:
    """Features of one arm, in the frame's order: all but priors, plus what the arm adds.

    Raises
    ------
    AdvpriorError
        ``RNK022`` when a pattern of the arm matches no feature of the frame.
    """
    features = feature_columns(columns)
    unmatched = [p for p in arm.adds if not any(_adds(p, c) for c in features)]
    if unmatched:
        priors = sorted({group_of(c) for c in features if c.startswith(PRIOR_VIEW_PREFIX)})
        raise AdvpriorError(
            "RNK022",
            f"the frame has no feature that arm `{arm.name}` adds",
            where=", ".join(unmatched),
            actual=f"priors in the frame: {', '.join(priors) or 'none'}",
            fix="publish that predictor's priors and build the frame again, or take the arm out of your arms.yaml",
        )
    return [c for c in features if not c.startswith(PRIOR_VIEW_PREFIX) or any(_adds(p, c) for p in arm.adds)]


def with_available(
    arms: Arms, columns: Sequence[str], asked: Sequence[str] = (), *, optional: bool = False
) -> tuple[Arms, dict[str, str]]:
    """Arms that the frame can feed, and what the others lack.

    Parameters
    ----------
    arms : Arms
    columns : sequence of str
        Of the frame.
    asked : sequence of str
        Names of arms that must be measured: these and the baseline, no others. Without any: all but optional ones.
    optional : bool
        Without any asked: optional ones too.

    Returns
    -------
    Arms
    dict of str to str
        Arms left out because no prior of theirs is in the frame, and the patterns that say so.

    Raises
    ------
    AdvpriorError
        ``RNK021`` for an unknown name, ``RNK022`` when an asked arm lacks its columns, or when any arm's pattern
        matches nothing of a prior that is in the frame: a slip of the pen, not a predictor that was not run.
    """
    names = {arms.find(name).name for name in asked}
    present = {group_of(c) for c in feature_columns(columns)}
    kept: list[Arm] = []
    left_out: dict[str, str] = {}
    for arm in arms.arms:
        if not arm.is_baseline and (arm.name not in names if names else arm.optional and not optional):
            continue
        absent = [p for p in arm.adds if p.startswith(PRIOR_VIEW_PREFIX) and group_of(p) not in present]
        if absent and not names:
            left_out[arm.name] = ", ".join(absent)
            continue
        arm_features(arm, columns)
        kept.append(arm)
    return Arms(arms=tuple(kept), ranker=arms.ranker), left_out
