"""What brings in what an arm adds and a frame lacks, as the fix of an error."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from advprior.store.contract import CLUSTER, PRIOR_VIEW_PREFIX
from advprior.store.features import Feature, groups_of


def missing_fix(entries: Sequence[str], features: Sequence[Feature]) -> str:
    """What brings in what an arm adds and the frame lacks: another name, a publication, or a view of one's own.

    >>> missing_fix(["prior_als"], [])
    'publish the priors (advprior publish PRIORS/als --repo REPO), feast apply, and build the frame again'
    """
    names = [*groups_of(features), *(feature.name for feature in features)]
    near = [match for entry in entries for match in get_close_matches(entry, names, 1, 0.8)]
    if near:
        return f"did you mean {', '.join(near)}?"
    priors = [entry for entry in entries if entry.startswith(PRIOR_VIEW_PREFIX)]
    if priors and priors == list(entries):
        folders = " and ".join(f"PRIORS/{entry.removeprefix(PRIOR_VIEW_PREFIX)}" for entry in priors)
        return f"publish the priors (advprior publish {folders} --repo REPO), feast apply, and build the frame again"
    if list(entries) == [CLUSTER]:
        return (
            "give ads a column `cluster` (advprior data clusters --tables TABLES --out TABLES2), then advprior rank "
            "features --tables TABLES2 --repo REPO, feast apply, and build the frame again"
        )
    return (
        "a feature of your own reaches the frame by its view: add the view to _BASELINE in definitions.py, feast "
        "apply, and build the frame again; in Python, frame.with_prior(name, values)"
    )
