"""What each encoder makes of the catalog's texts, as cosines, and beside each its network with random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from advprior.evaluation.learning_curve.arms import LEXICAL, Source
from advprior.history.catalog import Catalog
from advprior.predictors.encoding.encode import encode, encoder_identity
from advprior.predictors.encoding.lexical import lexical_cosines
from advprior.predictors.encoding.settings import Encoding, label, parse_encoding
from advprior.predictors.text.similar import cosines
from advprior.predictors.tuning.base import DEFAULT_BASE
from advprior.store.arrays import Float

DEFAULT = DEFAULT_BASE
RANDOM = "random weights"


def random_control(encoder: str) -> str:
    """Name of the arm with the same network, pooled alike, without its pre-training.

    >>> random_control("MiniLM")
    'MiniLM, random weights'
    """
    return f"{encoder}, {RANDOM}"


def sources_of(encoders: Sequence[str]) -> dict[str, Source]:
    """What arms are called, and what is behind them: each encoder beside its control.

    >>> sorted(sources_of(["HuggingFaceTB/SmolLM2-135M-Instruct@skip_first"]))
    ['SmolLM2-135M-Instruct@skip_first', 'SmolLM2-135M-Instruct@skip_first, random weights']
    """
    sources: dict[str, Source] = {}
    for name in _named(encoders):
        control = random_control(name)
        sources |= {name: Source(uses_llm=True, control=control), control: Source()}
    return sources


def catalog_cosines(
    catalog: Catalog, encoders: Sequence[str], layers: int | None, cutoff: int
) -> tuple[dict[str, Float], float]:
    """Cosines [N, N] by encoder, the lexical one first, and the CPU-seconds that the encodings took when made.

    Parameters
    ----------
    catalog : Catalog
    encoders : sequence of str
        As `advprior.predictors.encoding.settings.parse_encoding` reads them.
    layers : int, optional
        Of each encoder that names none.
    cutoff : int
        The first of the cut-offs, in microseconds.

    Raises
    ------
    AdvpriorError
        As `advprior.predictors.encoding.encode.encode`.
    """
    by_encoder, spent = {LEXICAL: lexical_cosines(catalog.descriptions(". "))}, 0.0
    for name, encoding in zip(_named(encoders), _parsed(encoders, layers), strict=True):
        texts = catalog.to_read(masked=encoding.masked).descriptions(". ")
        for called, one in ((name, encoding), (random_control(name), encoding.model_copy(update={"twin": True}))):
            encodings, facts = encode(texts, one, cutoff=cutoff)
            by_encoder[called] = cosines(encodings)
            spent += float(facts["cpu_seconds"])
    return by_encoder, spent


def identities(encoders: Sequence[str], layers: int | None) -> list[list[str]]:
    """What tells encoders apart, weights included: cells are measured anew when it changes."""
    parsed = _parsed(encoders, layers)
    return [[one.key(), str(one.masked), *sorted(encoder_identity(one.base).values())] for one in parsed]


def _parsed(encoders: Sequence[str], layers: int | None) -> list[Encoding]:
    parsed = [parse_encoding(text) for text in encoders]
    return [one.model_copy(update={"layers": layers}) if one.layers is None and layers else one for one in parsed]


def _named(encoders: Sequence[str]) -> list[str]:
    """Short names; the whole text where two would be called the same."""
    short = [label(parse_encoding(text)) for text in encoders]
    often = Counter(short)
    return [text if often[name] > 1 else name for name, text in zip(short, encoders, strict=True)]
