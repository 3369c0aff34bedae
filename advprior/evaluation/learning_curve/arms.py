"""The arms of a learning curve: each a set of terms in one conditional logit, so that they differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from advprior.evaluation.terms import ARMS, DRIFT, EVER, LOGIT, Terms
from advprior.predictors.text.similar import MEAN, TEMPERATURES, TOP, averaged, text_terms
from advprior.store.arrays import Float, Int

LEXICAL, L3AE, LIFT = "lexical", "l3ae", "lift"
FEW, ALONE, WITH_LIFT = "few terms", "few terms over drift alone", "with lift"
HISTORY = 730.0  # half-life of a history that texts are read through, days
POPULAR = {"long": 365.0, "longest": 1460.0}  # half-lives of what is smoothed over alike texts, days


@dataclass(frozen=True)
class Source:
    """What reads the texts.

    Parameters
    ----------
    uses_llm : bool
        Whether pre-trained weights are behind it.
    control : str, optional
        Name of the source that is the same network with random weights.
    mixed : bool
        Whether it is averaged with words.
    """

    uses_llm: bool = False
    control: str | None = None
    mixed: bool = False


@dataclass(frozen=True)
class CurveArm:
    """One arm.

    Parameters
    ----------
    terms : tuple of str
    uses_llm : bool
        Whether pre-trained weights are behind it.
    control : str
        Name of the arm that has random weights in their place; empty where there is none.
    """

    terms: tuple[str, ...]
    uses_llm: bool = False
    control: str = ""


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
    plain = arms[LOGIT].terms
    lexical = (*plain, *_all_of(LEXICAL, available))
    arms[LEXICAL] = CurveArm(lexical)
    arms[f"{LEXICAL}, {FEW}"] = CurveArm((*plain, *_few_of(LEXICAL, available)))
    if (lift := _named(LEXICAL, LIFT)) in available:
        arms[f"{LEXICAL}, {WITH_LIFT}"] = CurveArm((*lexical, lift))
    drift = arms[DRIFT].terms
    arms[f"{LEXICAL}, {ALONE}"] = CurveArm((*drift, *_few_of(LEXICAL, available)))
    for name, source in sources.items():
        few, control, llm = _few_of(name, available), source.control, source.uses_llm
        if source.mixed:
            arms[name] = CurveArm((*plain, *_all_of(name, available)), llm, control or "")
            arms[f"{name}, {FEW}"] = CurveArm((*plain, *few), llm, f"{control}, {FEW}" if control else "")
            if (lift := _named(name, LIFT)) in available:
                every = (*plain, *_all_of(name, available), lift)
                arms[f"{name}, {WITH_LIFT}"] = CurveArm(every, llm, f"{control}, {WITH_LIFT}" if control else "")
            arms[f"{name}, {ALONE}"] = CurveArm((*drift, *few), llm, f"{control}, {ALONE}" if control else "")
        else:
            arms[name] = CurveArm((*plain, *few), llm, control or "")
            beside = f"{LEXICAL} + {control}" if control else ""
            arms[f"{LEXICAL} + {name}"] = CurveArm((*lexical, *few), llm, beside)
    return arms


def with_averages(
    cosines: Mapping[str, Float], sources: Mapping[str, Source]
) -> tuple[dict[str, Float], dict[str, Source]]:
    """The same, and words averaged with every encoder, beside words averaged with every one's random weights."""
    llms = [name for name, source in sources.items() if source.uses_llm]
    controls = [control for name in llms if (control := sources[name].control)]
    more, called = dict(cosines), dict(sources)
    if llms and len(controls) == len(llms):
        with_llm, random = (f"{LEXICAL} and {' and '.join(names)}, averaged" for names in (llms, controls))
        for name, inside in ((with_llm, llms), (random, controls)):
            more[name] = averaged([cosines[one] for one in (LEXICAL, *inside)])
        called |= {with_llm: Source(uses_llm=True, control=random, mixed=True), random: Source(mixed=True)}
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
    return source not in sources or sources[source].mixed


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
