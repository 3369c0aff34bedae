"""Settings of the text prior, as a configuration file says them: every key has a default, an unknown one is refused."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from advprior.predictors.encoding.settings import Encoding
from advprior.predictors.text.places import FIRST

SPREAD = "spread"  # a value of `new_boost`


class TextSettings(Encoding):
    """Settings of the text prior: which encoder reads the texts, and how the logit over its encodings is fitted.

    Its quality is measured by another fit, of half the points, that saw no label of the last ``valid_days``.
    ``known: false`` ranks every advertiser from its texts alone. ``new_boost`` (nats) is added to an advertiser without
    events: at 0 the prior is calibrated and best over all labels, but then one estimate for all that look alike hardly
    ever reaches the first places; ``spread`` gives them the benefit of the doubt: one standard deviation of what data
    says of known advertisers about what their texts say. ``new_places`` keeps so many of the first five places for
    them, each user's likeliest ones (see `advprior.predictors.text.places`): as bold whatever the encoder, and other
    estimates stay what they were. ``alike`` adds terms that read the whole text (see `advprior.predictors.text.alike`):
    for new advertisers first of all.
    """

    components: int = Field(default=8, ge=1)
    known: bool = True
    new_boost: float | Literal["spread"] = 0.0
    new_places: int = Field(default=0, ge=0, le=FIRST)
    alike: bool = False
    withheld_share: float = Field(default=0.2, gt=0, lt=1)
    popularity_half_lives_days: tuple[float, ...] = (60.0, 365.0)
    recency_half_life_days: float = Field(default=500.0, gt=0)
    penalty: float = Field(default=3.0, ge=0)
    personal_penalty: float = Field(default=1.0, ge=0)
    points: int = Field(default=5000, ge=1)
    horizon_days: float = Field(default=7.0, gt=0)
    valid_days: float = Field(default=21.0, gt=0)
    max_minutes: float | None = Field(default=None, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _somebody_is_known(self) -> TextSettings:
        if self.new_places and not self.known:
            raise ValueError("new_places keeps places among those of known advertisers: it needs known: true")
        return self
