"""Who is in which arm: a salted hash of the user, so that no table has to be kept and no two services disagree."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from advprior.store.errors import AdvpriorError
from advprior.store.keys import explain

#: What an experiment's outcomes are counted of.
Per = Literal["user", "exposure"]


class ServedArm(BaseModel):
    """One arm of an online experiment.

    Parameters
    ----------
    name : str
    share : float
        Of users; shares are normalised.
    priors : bool
        Whether its users are ranked with priors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    share: float = Field(gt=0)
    priors: bool


class Experiment(BaseModel):
    """An experiment: arms and the salt that assigns users to them.

    A new salt assigns anew; the same salt keeps every user where they are, as long as the shares stay.

    Parameters
    ----------
    name, salt : str
    arms : tuple of ServedArm
    planned_users : int
        Users that the experiment is planned to reach, in all arms: the readout's interval for any look is narrowest
        there. Fix it before the first look.
    per : {'user', 'exposure'}
        What the readout compares: outcomes of each user, or per exposure. Per exposure how often users come is no
        noise, so that the interval is shorter; where an arm makes users come more often, that is no part of it. Fix it
        before the first look, too.

    Examples
    --------
    >>> half = Experiment(name="try", salt="s1", arms=(ServedArm(name="control", share=1, priors=False),
    ...                                                ServedArm(name="treatment", share=1, priors=True)))
    >>> half.arm_of("u1").name == half.arm_of("u1").name
    True
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    salt: str = Field(min_length=1)
    arms: tuple[ServedArm, ...] = Field(min_length=1)
    planned_users: int = Field(default=10_000, ge=10)
    per: Per = "user"

    @model_validator(mode="after")
    def _distinct(self) -> Experiment:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError("arm names must be unique")
        return self

    @cached_property
    def shares(self) -> dict[str, float]:
        """Expected share of users by arm; sums to 1."""
        total = sum(arm.share for arm in self.arms)
        return {arm.name: arm.share / total for arm in self.arms}

    @cached_property
    def _edges(self) -> list[float]:
        return list(accumulate(self.shares.values()))[:-1]

    def arm_of(self, user_id: str) -> ServedArm:
        """The arm of a user: by the first 8 bytes of SHA-256 of experiment, salt and user."""
        text = f"{self.name}\x1f{self.salt}\x1f{user_id}"
        place = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2.0**64
        return self.arms[bisect_right(self._edges, place)]


#: Without an experiment everybody is ranked with priors.
EVERYBODY = Experiment(name="none", salt="none", arms=(ServedArm(name="all", share=1, priors=True),))


def load_experiment(path: Path | None) -> Experiment:
    """Read an experiment's YAML; `EVERYBODY` without one.

    Raises
    ------
    AdvpriorError
        ``CFG001`` when it is missing, no YAML, or not valid.
    """
    if path is None:
        return EVERYBODY
    fix = (
        "name, salt and arms: [{name: control, share: 0.5, priors: false}, {name: treatment, share: 0.5, priors: true}]"
    )
    try:
        return Experiment.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise AdvpriorError(
            "CFG001", "the experiment cannot be read", where=str(path), actual=str(error), fix=fix
        ) from error
    except yaml.YAMLError as error:
        raise AdvpriorError(
            "CFG001", "the experiment is not YAML", where=str(path), actual=str(error).replace("\n", " "), fix=fix
        ) from error
    except ValidationError as error:
        raise AdvpriorError(
            "CFG001", "the experiment is not valid", where=str(path), actual=explain(error, Experiment), fix=fix
        ) from error
