"""The arms of a learning curve: each a set of terms in one conditional logit, so that they differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from advprior.evaluation.terms import ARMS, EVER, LOGIT, Terms
from advprior.predictors.text.similar import MEAN, TOP, text_terms
from advprior.store.arrays import Double, Float, Int

LEXICAL, L3AE = "lexical", "l3ae"
TOGETHER = "all encoders"
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
    """

    uses_llm: bool = False
    control: str | None = None


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
    lexical = (*plain, *_terms_of(LEXICAL, available))
    arms[LEXICAL] = CurveArm(lexical)
    for name, source in sources.items():
        alone, beside = source.control or "", f"{LEXICAL} + {source.control}" if source.control else ""
        arms[name] = CurveArm((*plain, *_terms_of(name, available)), source.uses_llm, alone)
        arms[f"{LEXICAL} + {name}"] = CurveArm((*lexical, *_short(available, name)), source.uses_llm, beside)
    llms = {name: source.control for name, source in sources.items() if source.uses_llm}
    if len(llms) > 1:
        controls = tuple(dict.fromkeys(control for control in llms.values() if control))
        random = f"{LEXICAL} + {TOGETHER}, random weights" if controls else ""
        arms[f"{LEXICAL} + {TOGETHER}"] = CurveArm((*lexical, *_short(available, *llms)), True, random)
        if random:
            arms[random] = CurveArm((*lexical, *_short(available, *controls)))
    return arms


def own_text_terms(terms: Terms, users: Int, cosines: Mapping[str, Float]) -> dict[str, Float]:
    """Terms [P, N] of each source that depend on the users' own events and the texts, and on nobody else's."""
    own, ever = terms.own(users, HISTORY), terms.own(users, EVER) > 0
    return {
        _named(source, name): term
        for source, cosine in cosines.items()
        for name, term in text_terms(cosine, own, ever, {}).items()
    }


def everyones_text_terms(terms: Terms, cosines: Mapping[str, Float]) -> dict[str, Float]:
    """Terms [N] of each source that hold everyone's events, smoothed over alike texts: the same for every user."""
    popular = {reach: terms.decayed(h) for reach, h in POPULAR.items()}
    values: dict[str, Float] = {}
    for source, cosine in cosines.items():
        nobody = np.zeros((1, len(cosine)), np.float32)
        own = set(text_terms(cosine, nobody, nobody > 0, {}))
        for name, term in text_terms(cosine, nobody, nobody > 0, popular).items():
            if name not in own:
                values[_named(source, name)] = term[0]
    return values


def linear_text_terms(terms: Terms, users: Int, semantic: Mapping[str, Double]) -> dict[str, Float]:
    """The linear autoencoder's term [P, N] of each source's semantic matrix: by everyone's events, of the user's."""
    return {_named(source, L3AE): terms.l3ae(users, source, matrix) for source, matrix in semantic.items()}


def _terms_of(source: str, available: set[str]) -> tuple[str, ...]:
    """Names of all terms of a source, in order."""
    return tuple(sorted(term for term in available if term.startswith(f"{source}: ")))


def _short(available: set[str], *sources: str) -> tuple[str, ...]:
    """The few terms of each source that give most of what it gives."""
    names = (_named(source, term) for source in sources for term in (MEAN, TOP, L3AE))
    return tuple(name for name in names if name in available)


def _named(source: str, term: str) -> str:
    return f"{source}: {term}"
