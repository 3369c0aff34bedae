"""Settings of the LightGBM ranker: those with defaults of ours, and LightGBM's other parameters beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ranking.models.params import checked_params

Objective = Literal["binary", "lambdarank"]


class RankerConfig(BaseModel):
    """Settings of the LightGBM ranker, the same for every arm.

    ``start_from`` names a feature, a prior's log-probability: trees start from its log-odds and do not split on it.
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
    negatives_per_positive: int | None = Field(default=15, ge=1)
    max_rounds: int = Field(default=1000, ge=1)
    patience: int = Field(default=40, ge=1)
    calibration: Literal["platt", "isotonic"] = "platt"
    threads: int = Field(default=2, ge=1)
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _others_are_lightgbms(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("params") or {}, dict):
            return raw
        own = {name: value for name, value in raw.items() if name in cls.model_fields}
        others = {str(name): value for name, value in raw.items() if name not in own}
        return {**own, "params": {**(raw.get("params") or {}), **others}}

    @field_validator("params")
    @classmethod
    def _of_lightgbm(cls, params: dict[str, Any]) -> dict[str, Any]:
        return checked_params(params, cls.model_fields) if params else params
