"""The arms of a learning curve: each a set of terms in one conditional logit, so that they differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from advprior.evaluation.terms import ARMS, EVER, LOGIT, Terms
from advprior.predictors.text.similar import MEAN, TOP, text_terms
from advprior.store.arrays import Float, Int

LEXICAL = "lexical"
HISTORY = 730.0  # half-life of a history that texts are read through, days
POPULAR = (365.0, 1460.0)  # half-lives of what is smoothed over alike texts, days


@dataclass(frozen=True)
class CurveArm:
    """One arm.

    Parameters
    ----------
    terms : tuple of str
    uses_llm : bool
        Whether pre-trained weights are behind it.
    """

    terms: tuple[str, ...]
    uses_llm: bool = False


def text_names(encoder: str) -> tuple[str, ...]:
    """Names of all terms of an encoder."""
    one = np.zeros((1, 1), np.float32)
    popular = {_days(h): one[0] for h in POPULAR}
    return tuple(_named(encoder, name) for name in text_terms(one, one, one > 0, popular))


def arms_of(encoders: Mapping[str, bool], available: set[str]) -> dict[str, CurveArm]:
    """Every arm: the controls without a text, the lexical one, and each encoder alone and beside the lexical one.

    Parameters
    ----------
    encoders : mapping of str to bool
        Name -> whether pre-trained weights are behind it; the lexical one is not among them.
    available : set of str
        Terms that the data and the installed packages allow; an arm whose own term is not among them is left out.
    """
    arms = {
        name: CurveArm(tuple(term for term in terms if term in available))
        for name, terms in ARMS.items()
        if name not in terms or name in available
    }
    plain = arms[LOGIT].terms
    lexical = (*plain, *text_names(LEXICAL))
    arms[LEXICAL] = CurveArm(lexical)
    for encoder, uses_llm in encoders.items():
        arms[encoder] = CurveArm((*plain, *text_names(encoder)), uses_llm)
        both = (*lexical, _named(encoder, MEAN), _named(encoder, TOP))
        arms[f"{LEXICAL} + {encoder}"] = CurveArm(both, uses_llm)
    return arms


def all_terms(terms: Terms, users: Int, cosines: Mapping[str, Float]) -> dict[str, Float]:
    """Every term [P, N] by name: those of counts, and those of each encoder's cosines."""
    values = terms(users)
    own, ever = terms.own(users, HISTORY), terms.own(users, EVER) > 0
    popular = {_days(h): terms.decayed(h) for h in POPULAR}
    for encoder, cosine in cosines.items():
        values |= {_named(encoder, name): term for name, term in text_terms(cosine, own, ever, popular).items()}
    return values


def _named(encoder: str, term: str) -> str:
    return f"{encoder}: {term}"


def _days(half_life: float) -> str:
    return f"{half_life:.0f} d"
