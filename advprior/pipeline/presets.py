"""The lists of priors that a project file may name in one word: data only, in the form of `advprior.yaml` itself."""

from __future__ import annotations

from typing import Any

from advprior.store.contract import CATALOG_TEXT, EASE, HYBRID, L3AE, LEXICAL, LLM, NEIGHBOURS, POPULARITY, SASREC, TWIN

_BY_CATEGORY = {"by": "advertiser_category"}
_RANDOM_ENCODER: dict[str, Any] = {"settings": {"encoder": {"twin": True}}}

#: The default: an LLM and the controls that it must beat. Zero-shot is in no list: it reads every advertiser's name
#: behind every prompt, a hundred times the cost of the head.
FEW: tuple[dict[str, Any], ...] = (
    {"name": POPULARITY},
    {"name": NEIGHBOURS},
    # for an advertiser and a category: as fine as what a label asks
    {"name": "neighbours_pair", "predictor": NEIGHBOURS, **_BY_CATEGORY},
    {"name": SASREC},
    # words of the same texts without a network: what the text prior's encoder has to beat
    {"name": "lexical_pair", "predictor": CATALOG_TEXT, "settings": {"base": LEXICAL}, **_BY_CATEGORY},
    # the same network without pre-training: what the encoder's knowledge of language has to beat
    {"name": "text_twin_pair", "predictor": CATALOG_TEXT, "settings": {"twin": True}, **_BY_CATEGORY},
    {"name": "text_pair", "predictor": CATALOG_TEXT, **_BY_CATEGORY, "placebo": True},
    {"name": LLM, "placebo": True},
)

#: Everything that was ever worth comparing.
FULL: tuple[dict[str, Any], ...] = (
    *FEW,
    # habit at a half-life of two days and nothing of what goes with what: whom the user turned to last
    {"name": "last", "predictor": NEIGHBOURS, "settings": {"half_lives_days": [2], "similar": False}},
    {"name": HYBRID},
    {"name": "lexical", "predictor": CATALOG_TEXT, "settings": {"base": LEXICAL}},
    {"name": TWIN, "predictor": HYBRID, **_RANDOM_ENCODER},
    {"name": CATALOG_TEXT},
    {"name": "ranked", "predictor": LLM, "settings": {"ranking": {"epochs": 1}}},
    {"name": "sasrec_pair", "predictor": SASREC, **_BY_CATEGORY},
    {"name": "twin_pair", "predictor": HYBRID, **_RANDOM_ENCODER, **_BY_CATEGORY},
    {"name": "hybrid_pair", "predictor": HYBRID, **_BY_CATEGORY},
    # linear autoencoders of events alone, and of events and texts, with the lexical control of the latter
    {"name": "ease_pair", "predictor": EASE, **_BY_CATEGORY},
    {"name": "l3ae_lexical_pair", "predictor": L3AE, "settings": {"encoder": {"base": LEXICAL}}, **_BY_CATEGORY},
    {"name": "l3ae_pair", "predictor": L3AE, **_BY_CATEGORY},
    {"name": "popularity_pair", "predictor": POPULARITY, **_BY_CATEGORY},
    {"name": "llm_pair", "predictor": LLM, **_BY_CATEGORY},
    {"name": "llm_twin_pair", "predictor": LLM, "settings": {"twin": True}, **_BY_CATEGORY},
)

#: With all priors: the first one's of so many weeks ago as well.
STALE_WEEKS = (1, 4, 12)

#: Fitted in seconds, without a network: measured first.
CHEAP = (POPULARITY, NEIGHBOURS)
