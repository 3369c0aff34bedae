"""Priors from linear autoencoders in closed form: EASE, a control harder than cosines, and L3AE, which reads texts too.

Each is the neighbour prior with other numbers between two advertisers (`advprior.predictors.autoencoders`): fitted in
seconds, folded in as of each snapshot, exported to the same graph. Ridges are chosen on the last labels, with links
from before them.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import Field

from advprior.history.histories import Histories
from advprior.predictors import autoencoders
from advprior.predictors.base import CATALOG_TEXTS, FitData
from advprior.predictors.encoding.encode import encode, pretrained
from advprior.predictors.encoding.lexical import lexical_cosines
from advprior.predictors.encoding.settings import Encoding
from advprior.predictors.neighbours import LinkPredictor, Links, LinkSettings
from advprior.predictors.text.similar import cosines
from advprior.store.arrays import Double, Float
from advprior.store.contract import EASE, L3AE, LEXICAL
from advprior.store.errors import AdvpriorError

_Positive = Annotated[float, Field(gt=0)]


class EaseSettings(LinkSettings):
    """Settings of EASE; of several ``ridges`` the one is taken that explains the validation labels best."""

    ridges: tuple[_Positive, ...] = Field(default=(10.0, 100.0, 1000.0), min_length=1)


class L3AESettings(LinkSettings):
    """Settings of L3AE.

    ``encoder`` reads the texts (``base: lexical``: their words, the lexical control). ``ridge`` is that of the events,
    ``semantic_ridge`` of the texts; of several ``pulls`` to what the texts say the one is taken that explains the
    validation labels best.
    """

    encoder: Encoding = Encoding()
    ridge: _Positive = autoencoders.L3AE_RIDGE
    semantic_ridge: _Positive = autoencoders.SEMANTIC_RIDGE
    pulls: tuple[_Positive, ...] = Field(default=(100.0, 1000.0, 10000.0), min_length=1)
    seed: int = 0


class EasePredictor(LinkPredictor):
    """A conditional logit on log-popularity, habit and a linear autoencoder of events (EASE)."""

    kind = EASE

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> EaseSettings:
        return EaseSettings(**raw)

    @classmethod
    def links(cls, data: FitData, settings: EaseSettings) -> Links:
        """See `LinkPredictor.links`; ``PRI084`` where the advertisers are too many."""
        size = _narrow(data)
        return Links({f"ridge {ridge:g}": partial(_ease, size=size, ridge=ridge) for ridge in settings.ridges})


class L3AEPredictor(LinkPredictor):
    """A conditional logit on log-popularity, habit and a linear autoencoder that leans on texts (L3AE)."""

    kind = L3AE

    @property
    def uses_llm(self) -> bool:
        """Whether pre-trained weights are behind it: not so for the lexical and the random-weight control."""
        return pretrained(self.run, Encoding(**self.parameters["encoder"]))

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, CATALOG_TEXTS)

    @classmethod
    def settings(cls, raw: dict[str, Any]) -> L3AESettings:
        return L3AESettings(**raw)

    @classmethod
    def links(cls, data: FitData, settings: L3AESettings) -> Links:
        """See `LinkPredictor.links`; ``PRI084`` where the advertisers are too many, and as the encoder."""
        size = _narrow(data)
        cosine, facts = _text_cosines(data, settings)
        semantic = autoencoders.ease_weights(cosine, settings.semantic_ridge)
        ways = {
            f"pull {pull:g}": partial(_l3ae, size=size, semantic=semantic, ridge=settings.ridge, pull=pull)
            for pull in settings.pulls
        }
        return Links(ways, facts, {"encoder": settings.encoder.model_dump(mode="json")})


def _ease(histories: Histories, *, size: int, ridge: float) -> Float:
    return autoencoders.scaled(autoencoders.ease_weights(autoencoders.gram(histories, size), ridge))


def _l3ae(histories: Histories, *, size: int, semantic: Double, ridge: float, pull: float) -> Float:
    both = autoencoders.gram(histories, size)
    return autoencoders.scaled(autoencoders.l3ae_weights(both, semantic, ridge, pull))


def _text_cosines(data: FitData, settings: L3AESettings) -> tuple[Float, dict[str, Any]]:
    """How alike the encoder finds two advertisers [N, N], and what it is."""
    encoding = settings.encoder
    texts = data.catalog.to_read(masked=encoding.masked).descriptions(". ")
    if encoding.base == LEXICAL:
        return lexical_cosines(texts), encoding.origin_facts({"kind": LEXICAL, "source": LEXICAL})
    encodings, origin = encode(texts, encoding, seed=settings.seed, cutoff=data.cutoff)
    return cosines(encodings), encoding.origin_facts(origin)


def _narrow(data: FitData) -> int:
    """N, where dense matrices [N, N] can be had.

    Raises
    ------
    AdvpriorError
        ``PRI084``.
    """
    size = len(data.catalog)
    if size > autoencoders.WIDEST:
        raise AdvpriorError(
            "PRI084",
            "the catalog is too wide for a linear autoencoder",
            where="advertisers.parquet",
            actual=f"{size:,} advertisers: it inverts a dense matrix of {size:,} × {size:,}",
            expected=f"at most {autoencoders.WIDEST:,}",
            fix="the predictor sasrec, or text: their cost grows with the advertisers alone",
        )
    return size
