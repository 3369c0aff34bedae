"""The arms of a learning curve: each a set of terms in one conditional logit, so that they differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from advprior.evaluation.terms import ARMS, DRIFT, EVER, LOGIT, Terms
from advprior.predictors.text.similar import MEAN, TEMPERATURES, TOP, averaged, text_terms
from advprior.store.arrays import Float, Int

LEXICAL, L3AE, LIFT = "lexical", "l3ae", "lift"
FEW, ALONE, WITH_LIFT = "few terms", "few terms over drift alone", "with lift"
NO_NAMES = "names masked"
HISTORY = 730.0  # half-life of a history that texts are read through, days
POPULAR = {"long": 365.0, "longest": 1460.0}  # half-lives of what is smoothed over alike texts, days


@dataclass(frozen=True)
class Source:
    """What reads the texts.

    Parameters
    ----------
    uses_llm : bool
        Whether pre-trained weights are behind it.
    control : str
        Name of the source that is the same network with random weights; empty where there is none.
    whole : bool
        Whether arms read all of its terms: words, and what is averaged with words.
    named : str
        Of what reads texts without advertisers' names, the source that reads them with names; else empty.
    """

    uses_llm: bool = False
    control: str = ""
    whole: bool = False
    named: str = ""


@dataclass(frozen=True)
class Kin:
    """What is behind an arm, and the arms that differ from it in one thing alone; empty where there is none.

    Parameters
    ----------
    uses_llm : bool
        Whether pre-trained weights are behind it.
    control : str
        The arm with random weights in their place.
    words : str
        The arm with words alone in the network's place.
    masked : str
        The arm that reads the same texts without advertisers' names.
    is_masked : bool
        Whether it is one of those that read no names.
    """

    uses_llm: bool = False
    control: str = ""
    words: str = ""
    masked: str = ""
    is_masked: bool = False


@dataclass(frozen=True)
class CurveArm:
    """One arm.

    Parameters
    ----------
    terms : tuple of str
    kin : Kin
    """

    terms: tuple[str, ...]
    kin: Kin = Kin()


def without_names(name: str) -> str:
    """Name of the source that reads the same texts without advertisers' names.

    >>> without_names("lexical")
    'lexical, names masked'
    """
    return f"{name}, {NO_NAMES}"


def arms_of(sources: Mapping[str, Source], available: set[str]) -> dict[str, CurveArm]:
    """Every arm: the controls without a text, the lexical one, and each source alone and beside the lexical one.

    Parameters
    ----------
    sources : mapping of str to Source
        The lexical one is not among them.
    available : set of str
        Terms that the data and the installed packages allow; an arm whose own term is not among them is left out.
    """
    arms = {
        name: CurveArm(tuple(term for term in terms if term in available))
        for name, terms in ARMS.items()
        if name not in terms or name in available
    }
    plain, drift = arms[LOGIT].terms, arms[DRIFT].terms
    masked = {source.named: name for name, source in sources.items() if source.named}
    lexical = (*plain, *_all_of(LEXICAL, available))
    for name, source in ({LEXICAL: Source(whole=True)} | dict(sources)).items():
        if source.whole:
            for shape, terms in _shapes(name, plain, drift, available).items():
                arms[name + shape] = CurveArm(terms, _kin(source, masked.get(name, ""), shape))
            continue
        few = _few_of(name, available)
        arms[name] = CurveArm((*plain, *few), replace(_kin(source, masked.get(name, "")), words=_few_words(source)))
        if not source.named:  # words beside it would read the names
            beside = f"{LEXICAL} + {source.control}" if source.control else ""
            arms[f"{LEXICAL} + {name}"] = CurveArm((*lexical, *few), Kin(source.uses_llm, beside, LEXICAL))
    return arms


def _shapes(
    name: str, plain: tuple[str, ...], drift: tuple[str, ...], available: set[str]
) -> dict[str, tuple[str, ...]]:
    """Terms of each arm of a source that is read whole, by what its name ends in."""
    few, every, lift = _few_of(name, available), _all_of(name, available), _named(name, LIFT)
    shapes = {"": (*plain, *every), f", {FEW}": (*plain, *few)}
    if lift in available:
        shapes[f", {WITH_LIFT}"] = (*plain, *every, lift)
    return shapes | {f", {ALONE}": (*drift, *few)}


def _kin(source: Source, masked: str, shape: str = "") -> Kin:
    """The arms of the same shape beside a source's."""
    names = (source.control, _words_of(source) if source.uses_llm or source.control else "", masked)
    control, words, without = (name and name + shape for name in names)
    return Kin(source.uses_llm, control, words, without, bool(source.named))


def _words_of(source: Source) -> str:
    """Words that read the same texts as a source does."""
    return without_names(LEXICAL) if source.named else LEXICAL


def _few_words(source: Source) -> str:
    """The arm with words in the place of a source of few terms."""
    return f"{_words_of(source)}, {FEW}"


def with_averages(
    cosines: Mapping[str, Float], sources: Mapping[str, Source]
) -> tuple[dict[str, Float], dict[str, Source]]:
    """The same, and words averaged with every encoder, beside words averaged with every one's random weights.

    Where there are sources without names, the same of them.
    """
    llms = [name for name, source in sources.items() if source.uses_llm and not source.named]
    controls = [control for name in llms if (control := sources[name].control)]
    more, called = dict(cosines), dict(sources)
    if not llms or len(controls) < len(llms):
        return more, called
    with_llm, random = (f"{LEXICAL} and {' and '.join(names)}, averaged" for names in (llms, controls))
    for name, inside in ((with_llm, llms), (random, controls)):
        more[name] = averaged([cosines[one] for one in (LEXICAL, *inside)])
    called |= {with_llm: Source(uses_llm=True, control=random, whole=True), random: Source(whole=True)}
    if without_names(LEXICAL) in sources:
        for name, inside in ((with_llm, llms), (random, controls)):
            parts = [cosines.get(without_names(one), cosines[one]) for one in (LEXICAL, *inside)]
            control = without_names(random) if name == with_llm else ""
            more[without_names(name)] = averaged(parts)
            called[without_names(name)] = Source(name == with_llm, control, whole=True, named=name)
    return more, called


def own_text_terms(
    terms: Terms, users: Int, cosines: Mapping[str, Float], sources: Mapping[str, Source]
) -> dict[str, Float]:
    """Terms [P, N] of each source that depend on the users' own events and the texts, and on nobody else's."""
    own, ever = terms.own(users, HISTORY), terms.own(users, EVER) > 0
    return {
        _named(source, name): term
        for source, cosine in cosines.items()
        for name, term in text_terms(cosine, own, ever, {}, TEMPERATURES if is_whole(source, sources) else ()).items()
    }


def everyones_text_terms(terms: Terms, cosines: Mapping[str, Float], sources: Mapping[str, Source]) -> dict[str, Float]:
    """Terms [N] of each source that hold everyone's events, smoothed over alike texts: the same for every user."""
    popular = {reach: terms.decayed(h) for reach, h in POPULAR.items()}
    values: dict[str, Float] = {}
    for source, cosine in cosines.items():
        if not is_whole(source, sources):
            continue
        nobody = np.zeros((1, len(cosine)), np.float32)
        own = set(text_terms(cosine, nobody, nobody > 0, {}))
        for name, term in text_terms(cosine, nobody, nobody > 0, popular).items():
            if name not in own:
                values[_named(source, name)] = term[0]
    return values


def linear_text_terms(terms: Terms, users: Int, semantic: Mapping[str, Float]) -> dict[str, Float]:
    """The linear autoencoder's term [P, N] of each source's semantic matrix: by everyone's events, of the user's."""
    return {_named(source, L3AE): terms.l3ae(users, source, matrix) for source, matrix in semantic.items()}


def lift_text_terms(terms: Terms, users: Int, kernels: Mapping[str, Float]) -> dict[str, Float]:
    """The smoothed lift's term [P, N] of each source's kernel: by everyone's events, of the user's."""
    return {_named(source, LIFT): terms.lift(users, source, kernel) for source, kernel in kernels.items()}


def is_whole(source: str, sources: Mapping[str, Source]) -> bool:
    """Whether an arm reads all terms of a source: words by themselves, and what is averaged with them."""
    return source not in sources or sources[source].whole


def _all_of(source: str, available: set[str]) -> tuple[str, ...]:
    """Names of all terms of a source but the lift, which has arms of its own, in order."""
    of_source = {term for term in available if term.startswith(f"{source}: ")}
    return tuple(sorted(of_source - {_named(source, LIFT)}))


def _few_of(source: str, available: set[str]) -> tuple[str, ...]:
    """The few terms of a source that give most of what it gives."""
    names = (_named(source, term) for term in (MEAN, TOP, L3AE))
    return tuple(name for name in names if name in available)


def _named(source: str, term: str) -> str:
    return f"{source}: {term}"
