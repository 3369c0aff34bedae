"""Settings of the LightGBM ranker: those with defaults of ours, and LightGBM's other parameters beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ranking.models.params import checked_params

Objective = Literal["binary", "lambdarank"]


class RankerConfig(BaseModel):
    """Settings of the LightGBM ranker, the same for every arm.

    ``negatives`` is the share of the training negatives that is learned from, drawn at random; what a ranker says is
    corrected for the others (`ranking.models.sampling`). ``start_from`` names a feature, a prior's log-probability:
    trees start from its log-odds and do not split on it.
    Any other parameter of LightGBM goes into ``params``; written beside the settings it is moved there.

    >>> RankerConfig(num_leaves=15, reg_alpha=1.0).params
    {'lambda_l1': 1.0}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(default=0.03, gt=0, le=1)
    num_leaves: int = Field(default=31, ge=2)
    min_data_in_leaf: int = Field(default=200, ge=1)
    feature_fraction: float = Field(default=0.7, gt=0, le=1)
    bagging_fraction: float = Field(default=0.8, gt=0, le=1)
    lambda_l2: float = Field(default=5.0, ge=0)
    objective: Objective = "binary"
    monotone: bool = False
    start_from: str | None = None
    negatives: float | None = Field(default=None, gt=0, le=1)
    negatives_per_positive: int | None = Field(default=15, ge=1)
    max_rounds: int = Field(default=1000, ge=1)
    patience: int = Field(default=40, ge=1)
    calibration: Literal["platt", "isotonic"] = "platt"
    threads: int = Field(default=2, ge=1)
    params: dict[str, Any] = Field(default_factory=dict)

    def changed(self, **changes: Any) -> RankerConfig:
        """Other settings, the rest as here; of the two ways to leave negatives out the one that is named.

        >>> RankerConfig().changed(negatives=0.1).negatives_per_positive is None
        True
        """
        others = self.model_dump()
        if changes.get("negatives") is not None:
            others.pop("negatives_per_positive")
        elif changes.get("negatives_per_positive") is not None:
            others.pop("negatives")
        return RankerConfig.model_validate({**others, **changes})

    @model_validator(mode="before")
    @classmethod
    def _others_are_lightgbms(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("params") or {}, dict):
            return raw
        raw = _one_way_of_sampling(raw)
        own = {name: value for name, value in raw.items() if name in cls.model_fields}
        others = {str(name): value for name, value in raw.items() if name not in own}
        return {**own, "params": {**(raw.get("params") or {}), **others}}

    @field_validator("params")
    @classmethod
    def _of_lightgbm(cls, params: dict[str, Any]) -> dict[str, Any]:
        return checked_params(params, cls.model_fields) if params else params


def _one_way_of_sampling(raw: dict[str, Any]) -> dict[str, Any]:
    """Without ``negatives_per_positive`` where ``negatives`` is set: one of the two draws."""
    if raw.get("negatives") is None:
        return raw
    if raw.get("negatives_per_positive") is not None:
        raise ValueError("negatives and negatives_per_positive are two ways to leave negatives out: set one of them")
    return {**raw, "negatives_per_positive": None}
