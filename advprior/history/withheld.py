"""Advertisers withheld from fitting: how well are those ranked of whom there is no event yet?

Their events are taken out of the tables before anything is built from them, so that neither histories nor labels nor
popularity can tell; the catalog keeps their names and texts.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from advprior.store.contract import ADVERTISER_ID, ADVERTISERS
from advprior.store.errors import AdvpriorError
from advprior.store.tables import load_tables

if TYPE_CHECKING:
    import pandas as pd

_EXPECTED = "a share between 0 and 1, or a file of advertiser ids, one a line"


def without(events: pd.DataFrame, withheld: Collection[str]) -> pd.DataFrame:
    """The events of everyone else.

    >>> import pandas as pd
    >>> without(pd.DataFrame({"advertiser_id": ["a", None, "b"]}), ["a"]).advertiser_id.tolist()
    [None, 'b']
    """
    return events[~events[ADVERTISER_ID].astype(str).isin(list(withheld))] if len(withheld) else events


def draw(ids: Collection[str], share: float, seed: int) -> tuple[str, ...]:
    """``share`` of the ids at random, sorted: at least one, and never all.

    >>> len(draw(["a", "b", "c", "d", "e"], 0.4, seed=0)), draw(["a", "b"], 0.9, seed=0) in (("a",), ("b",))
    (2, True)
    """
    import numpy as np

    ordered = sorted(ids)
    count = min(max(round(share * len(ordered)), 1), len(ordered) - 1)
    return tuple(sorted(np.random.default_rng(seed).choice(ordered, count, replace=False).tolist()))


def choose_withheld(tables: Path, which: str, seed: int) -> tuple[str, ...]:
    """Ids to withhold: a share of the tables' advertisers drawn by ``seed``, or those a file lists.

    Raises
    ------
    AdvpriorError
        ``PRI060`` when ``which`` is neither, or names advertisers that the tables do not have.
    """
    ids_in_tables = set(load_tables(tables, ADVERTISERS)[ADVERTISERS][ADVERTISER_ID].astype(str))
    try:
        share = float(which)
    except ValueError:
        share = None
    if share is not None:
        if not 0 < share < 1:
            raise AdvpriorError(
                "PRI060", "these advertisers cannot be withheld", where="--withhold", actual=which, expected=_EXPECTED
            )
        return draw(ids_in_tables, share, seed)
    try:
        named = {line.strip() for line in Path(which).read_text().splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise AdvpriorError(
            "PRI060", "these advertisers cannot be withheld", where="--withhold", actual=str(error), expected=_EXPECTED
        ) from error
    strange = sorted(named - ids_in_tables)
    if strange or not named or named == ids_in_tables:
        raise AdvpriorError(
            "PRI060",
            "these advertisers cannot be withheld",
            where=which,
            actual=f"unknown: {', '.join(strange[:5])}"
            if strange
            else f"{len(named)} of {len(ids_in_tables)} advertisers",
            expected="some of the advertisers of the tables, not all",
            fix="one advertiser_id a line",
        )
    return tuple(sorted(named))
