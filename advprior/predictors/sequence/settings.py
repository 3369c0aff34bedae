"""Settings of the sequence predictors."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from advprior.predictors.encoding.settings import Encoding
from advprior.predictors.wide import SAMPLED, Softmax


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NetworkSettings(_Strict):
    """Shape of the network; ``free: false`` lets a hybrid know advertisers by their texts alone."""

    width: int = Field(default=64, ge=2)
    heads: int = Field(default=2, ge=1)
    layers: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    context: int = Field(default=512, ge=2)
    free: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> NetworkSettings:
        if self.width % self.heads:
            raise ValueError("width must be a multiple of heads")
        return self


class OffsetSettings(_Strict):
    """Half-lives in days of what the logits start from (see `advprior.predictors.offset`)."""

    popular: tuple[float, ...] = (30.0, 90.0, 365.0)
    own: tuple[float, ...] = (14.0, 120.0, 1000.0)
    around: float | None = Field(default=30.0, gt=0)


class FitSettings(_Strict):
    """How the network is fitted; ``patience``: passes without a better likelihood after which the choice is made.

    ``max_minutes`` bounds all of the fit, the encoding of texts included. ``softmax`` is over all advertisers
    (``full``, or ``blockwise``, which needs less memory) or over some ``sampled`` ones drawn for each batch; ``auto``
    is full up to 10,000 advertisers, and sampled beyond.
    """

    epochs: int = Field(default=8, ge=1)
    patience: int = Field(default=2, ge=1)
    batch_tokens: int = Field(default=1024, ge=16)
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    recency_half_life_days: float | None = Field(default=500.0, gt=0)
    gap_power: float = Field(default=0.5, ge=0)
    points_a_history: int = Field(default=64, ge=1)
    softmax: Softmax = "auto"
    sampled: int = Field(default=SAMPLED, ge=1)
    refit: bool = True
    max_minutes: float | None = Field(default=None, gt=0)
    seed: int = 0


class SequenceSettings(_Strict):
    """Settings of ``advprior finetune --predictor sasrec``."""

    horizon_days: float = Field(default=7.0, gt=0)
    target: Literal["all", "first"] = "all"
    valid_days: float = Field(default=21.0, gt=0)
    network: NetworkSettings = NetworkSettings()
    offset: OffsetSettings = OffsetSettings()
    training: FitSettings = FitSettings()


class EncoderSettings(Encoding):
    """What encodes the advertisers' texts, and how many of its components are read; of a language model 20 layers."""

    decoder_layers: ClassVar[int] = 20
    tokens: int = Field(default=96, ge=1)
    components: int = Field(default=64, ge=1)


class HybridSettings(SequenceSettings):
    """Settings of ``advprior finetune --predictor hybrid``."""

    encoder: EncoderSettings = EncoderSettings()
