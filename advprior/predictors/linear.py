"""Priors from linear autoencoders in closed form: EASE, a control harder than cosines, and L3AE, which reads texts too.

Each is the neighbour prior with other numbers between two advertisers (`advprior.predictors.autoencoders`): fitted in
seconds, folded in as of each snapshot, exported to the same graph. Ridges are chosen on the last labels, with links
from before them. Beyond `autoencoders.WIDEST` advertisers, whose closed form inverts an [N, N] matrix, the links of
each one come from a small system of its own (`advprior.predictors.sparse_links`).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import Field

from advprior.history.histories import Histories
from advprior.predictors import autoencoders, sparse_links
from advprior.predictors.base import CATALOG_TEXTS, FitData
from advprior.predictors.encoding.encode import encode, pretrained
from advprior.predictors.encoding.lexical import lexical_cosines, lexical_weights
from advprior.predictors.encoding.settings import Encoding
from advprior.predictors.neighbours import LinkPredictor, Links, LinkSettings
from advprior.predictors.text.similar import cosines, unit_vectors
from advprior.store.arrays import Double, Float
from advprior.store.contract import EASE, L3AE, LEXICAL

SYSTEM = 100  # links of an advertiser in the small systems: each costs the cube of their number
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
        """See `LinkPredictor.links`."""
        size = len(data.catalog)
        if size > autoencoders.WIDEST:
            few = min(settings.most, SYSTEM)
            return Links({f"ridge {r:g}": partial(_local, size=size, ridge=r, most=few) for r in settings.ridges})
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
        """See `LinkPredictor.links`; errors are those of the encoder."""
        size = len(data.catalog)
        if size > autoencoders.WIDEST:
            return _wide_links(data, settings)
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


def _local(histories: Histories, *, size: int, ridge: float, most: int, semantic: Any = None, pull: float = 0.0) -> Any:
    """EASE's or L3AE's links of a wide catalog, as a sparse matrix."""
    common = sparse_links.common_users(histories, size)
    return sparse_links.scaled_links(sparse_links.local_weights(common, ridge, most, semantic, pull))


def _wide_links(data: FitData, settings: L3AESettings) -> Links:
    """L3AE's links of a wide catalog: texts as vectors, of each advertiser the nearest."""
    encoding, size, few = settings.encoder, len(data.catalog), min(settings.most, SYSTEM)
    texts = data.catalog.to_read(masked=encoding.masked).descriptions(". ")
    if encoding.base == LEXICAL:
        vectors, origin = lexical_weights(texts), {"kind": LEXICAL, "source": LEXICAL}
    else:
        encodings, origin = encode(texts, encoding, seed=settings.seed, cutoff=data.cutoff)
        vectors = unit_vectors(encodings)
    nearest = sparse_links.text_links(vectors, few)
    semantic = sparse_links.semantic_weights(nearest, vectors, settings.semantic_ridge)
    ways = {
        f"pull {pull:g}": partial(_local, size=size, ridge=settings.ridge, most=few, semantic=semantic, pull=pull)
        for pull in settings.pulls
    }
    return Links(ways, encoding.origin_facts(origin), {"encoder": encoding.model_dump(mode="json")})
