"""Settings of the LLM prior, as a configuration file says them: every key has a default, an unknown one is refused."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from advprior.predictors.llm.prompt_details import Detail
from advprior.predictors.wide import SAMPLED, Softmax

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
#: YAML reads a bare ``no`` as false
Precision = Annotated[Literal["auto", "no", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptSettings(_Strict):
    """How a history is written (see `advprior.predictors.llm.prompts.PromptStyle`)."""

    profile: bool = True
    gaps: bool = True
    max_gap: int = Field(default=30, ge=1)
    context: int = Field(default=1024, ge=32)
    names: bool = False
    detail: Detail = "none"
    detail_tokens: int = Field(default=24, ge=1)
    advertisers: bool = True
    title: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _something_is_written(self) -> PromptSettings:
        if not self.advertisers and self.detail == "none":
            raise ValueError("advertisers: false needs a detail to be written in their place")
        return self


class HabitSettings(_Strict):
    """Habit and drift that the network starts from (see `advprior.predictors.offset`)."""

    popularity_half_life_days: float = Field(default=30.0, gt=0)
    half_lives_days: tuple[float, ...] = (60.0, 14.0)


class DriftSettings(_Strict):
    """What keeps the network from learning fashions instead of users, where labels reach over months.

    With ``around_days`` the logits start, while fitting, from everyone's events around the label's own day, both
    sides, decaying by this half-life. Weights of what is known at a snapshot (popularity at ``popular`` half-lives,
    own events at those of ``habit``) and the strength of the network beside it are fitted on the validation labels;
    then the network is fitted again on all labels up to the cut-off (``refit``); with ``keep_before``, what it was
    before that stays in ``before/`` of the run: those labels chose its offset, strength and epoch (so its model cut-off
    is the run's), and trained nothing in it.
    Each wait for a label is one training point, from a moment drawn within it, and counts for
    ``(wait / horizon) ** gap_power``.
    """

    around_days: float | None = Field(default=None, gt=0)
    popular: tuple[float, ...] = Field(default=(30.0, 90.0, 365.0), min_length=1)
    gap_power: float = Field(default=0.5, ge=0)
    refit: bool = True
    keep_before: bool = False


class LoraSettings(_Strict):
    """Low-rank adapters of ``mode: lora``, on every projection of attention and MLP in all kept layers."""

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class InterestSettings(_Strict):
    """The second head, over product categories."""

    weight: float = Field(default=0.0, ge=0)
    most: int = Field(default=500, ge=1)


class RankingSettings(_Strict):
    """The ranking stage after tuning (see `advprior.predictors.llm.tuning.grpo`).

    With several values of ``lr`` or ``kl`` each pair is a trial from the same tuned network; validation chooses.
    """

    epochs: int = Field(default=0, ge=0)
    group: int = Field(default=8, ge=2)
    lr: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 5e-5
    clip: float = Field(default=0.2, gt=0, lt=1)
    kl: NotNegative | Annotated[tuple[NotNegative, ...], Field(min_length=1)] = 0.02
    inner_steps: int = Field(default=2, ge=1)

    @property
    def trials(self) -> list[tuple[float, float]]:
        """Learning rate and KL weight of each trial; none without an epoch.

        >>> RankingSettings(epochs=1, lr=(1e-4, 1e-3)).trials
        [(0.0001, 0.02), (0.001, 0.02)]
        """
        rates, weights = ((value,) if isinstance(value, float) else value for value in (self.lr, self.kl))
        return list(product(rates, weights)) if self.epochs else []


class TrainingSettings(_Strict):
    """How the network and its heads are tuned.

    ``max_minutes`` bounds all of the fit: forwards of frozen layers, every stage, fitting again. ``mixed_precision``:
    forwards that are learnt from in ``bf16`` or not (``no``); ``auto`` is bf16 on a card that has it. ``max_points``
    bounds the cost where users are many: users are drawn until they have that many training points between them.
    ``points_a_user`` are fitted on at most of one user, the ``newest`` ones or some ``drawn`` at random. ``softmax`` is
    over all advertisers (``full``, or ``blockwise``, which needs less memory) or over some ``sampled`` ones drawn for
    each batch; ``auto`` is full up to 10,000 advertisers, and sampled beyond.
    """

    epochs: int = Field(default=4, ge=1)
    patience: int = Field(default=2, ge=1)
    batch_tokens: int = Field(default=2048, ge=32)
    lr: float = Field(default=1e-4, ge=0)
    head_lr: float = Field(default=2e-3, gt=0)
    free_lr: float = Field(default=1e-4, ge=0)
    adapter_lr: float = Field(default=0.0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    rank: int = Field(default=64, ge=1)
    recency_half_life_days: float | None = Field(default=None, gt=0)
    valid_days: float = Field(default=21.0, gt=0)
    mixed_precision: Precision = "auto"
    max_points: int | None = Field(default=100_000, ge=1)
    points_a_user: int | None = Field(default=None, ge=1)
    points_of_user: Literal["newest", "drawn"] = "newest"
    softmax: Softmax = "auto"
    sampled: int = Field(default=SAMPLED, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    seed: int = 0


class LLMSettings(_Strict):
    """Settings of ``advprior finetune`` for the LLM.

    ``masked`` takes the advertisers' names out of all that it reads: the control that cannot remember a brand.
    """

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    twin: bool = False
    layers: int = Field(default=10, ge=1)
    mode: Literal["cached", "lora", "full"] = "cached"
    tuned_layers: int = Field(default=2, ge=1)
    horizon_days: float = Field(default=7.0, gt=0)
    target: Literal["all", "first"] = "all"
    texts: bool = False
    masked: bool = False
    prompt: PromptSettings = PromptSettings()
    habit: HabitSettings = HabitSettings()
    drift: DriftSettings = DriftSettings()
    lora: LoraSettings = LoraSettings()
    interests: InterestSettings = InterestSettings()
    training: TrainingSettings = TrainingSettings()
    ranking: RankingSettings = RankingSettings()

    @model_validator(mode="after")
    def _nothing_names_what_is_masked(self) -> LLMSettings:
        if self.masked and self.prompt.detail in ("product", "full"):
            raise ValueError("masked: true needs prompt.detail none or category; the names of products name the brand")
        return self
