"""How many ads of a slate are candidates and how many are shown, where a project says it to the commands itself."""

from __future__ import annotations

#: What `rank ablate` and `rank two-by-two` take of long slates by default.
CANDIDATES, SHOWN = 15, 5


def slate_sizes(ads: float | None, *, always: bool) -> tuple[int, int] | None:
    """Candidates and shown ads: two thirds and one third of a short slate.

    By the ads of all slates, not of the test window's, so that every cut-off counts the same.

    Parameters
    ----------
    ads : float, optional
        Of a slate on average; None before the tables are made.
    always : bool
        Of long slates too, where None stands for the commands' own defaults otherwise.

    Examples
    --------
    >>> slate_sizes(9.0, always=False), slate_sizes(46.0, always=False), slate_sizes(46.0, always=True)
    ((6, 3), None, (15, 5))
    """
    if ads is None:
        return None
    if ads >= 1.5 * CANDIDATES:
        return (CANDIDATES, SHOWN) if always else None
    shown = max(1, round(ads / 3))
    return max(2, shown + 1, round(ads * 2 / 3)), shown
