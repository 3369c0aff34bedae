"""What each encoder makes of the catalog's texts, as cosines, and beside each its network with random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from advprior.evaluation.learning_curve.arms import LEXICAL, Source, without_names
from advprior.evaluation.room import require_room
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


def sources_of(encoders: Sequence[str], *, masked: bool = False) -> dict[str, Source]:
    """What arms are called, and what is behind them: each encoder beside its control.

    With ``masked``, words, encoders and controls stand there without advertisers' names as well.

    >>> sorted(sources_of(["HuggingFaceTB/SmolLM2-135M-Instruct@skip_first"]))
    ['SmolLM2-135M-Instruct@skip_first', 'SmolLM2-135M-Instruct@skip_first, random weights']
    >>> list(sources_of(["MiniLM"], masked=True))[2:4]
    ['lexical, names masked', 'MiniLM, names masked']
    """
    sources: dict[str, Source] = {}
    for name in _named(encoders):
        control = random_control(name)
        sources |= {name: Source(uses_llm=True, control=control), control: Source()}
    if not masked:
        return sources
    sources[without_names(LEXICAL)] = Source(whole=True, named=LEXICAL)
    for name, encoding in zip(_named(encoders), _parsed(encoders), strict=True):
        if not encoding.masked:
            control = random_control(name)
            sources[without_names(name)] = Source(uses_llm=True, control=without_names(control), named=name)
            sources[without_names(control)] = Source(named=control)
    return sources


def catalog_cosines(
    catalog: Catalog, encoders: Sequence[str], layers: int | None, cutoff: int, *, masked: bool = False
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
    masked : bool
        Whether everything reads the texts without advertisers' names as well.

    Raises
    ------
    AdvpriorError
        As `advprior.predictors.encoding.encode.encode`; ``PRI084`` where cosines of so many advertisers do not fit.
    """
    # words, each encoder and its control, averages; the same without names; and as many kernels
    matrices = 2 * (1 + 2 * len(encoders) + 2) * (1 + masked)
    require_room(
        f"cosines between {len(catalog):,} advertisers, {matrices} times",
        matrices * len(catalog) ** 2 * 4e-9,
        "fewer --encoder, or a catalog of fewer advertisers: a map is of all of them beside all others",
        where="advprior evaluate --learning-curve",
    )
    by_encoder, spent = {LEXICAL: lexical_cosines(catalog.descriptions(". "))}, 0.0
    without = catalog.to_read(masked=True).descriptions(". ")
    if masked:
        by_encoder[without_names(LEXICAL)] = lexical_cosines(without)
    for name, encoding in zip(_named(encoders), _parsed(encoders, layers), strict=True):
        texts = {name: without if encoding.masked else catalog.descriptions(". ")}
        if masked and not encoding.masked:
            texts[without_names(name)] = without
        for called, of in texts.items():
            control = random_control(name) if called == name else without_names(random_control(name))
            for arm, one in ((called, encoding), (control, encoding.model_copy(update={"twin": True}))):
                encodings, facts = encode(of, one, cutoff=cutoff)
                by_encoder[arm] = cosines(encodings)
                spent += float(facts["cpu_seconds"])
    return by_encoder, spent


def identities(encoders: Sequence[str], layers: int | None) -> list[list[str]]:
    """What tells encoders apart, weights included: cells are measured anew when it changes."""
    parsed = _parsed(encoders, layers)
    return [[one.key(), str(one.masked), *sorted(encoder_identity(one.base).values())] for one in parsed]


def _parsed(encoders: Sequence[str], layers: int | None = None) -> list[Encoding]:
    parsed = [parse_encoding(text) for text in encoders]
    return [one.model_copy(update={"layers": layers}) if one.layers is None and layers else one for one in parsed]


def _named(encoders: Sequence[str]) -> list[str]:
    """Short names; the whole text where two would be called the same."""
    short = [label(parse_encoding(text)) for text in encoders]
    often = Counter(short)
    return [text if often[name] > 1 else name for name, text in zip(short, encoders, strict=True)]
