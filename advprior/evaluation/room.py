"""Whether what an evaluation holds fits into this machine, said before hours are spent on it."""

from __future__ import annotations

from advprior.store.errors import AdvpriorError
from advprior.store.spent import machine_memory_gb

SHARE = 0.7  # of the machine's memory; the rest is for terms of a few users at a time, and for others


def require_room(what: str, gigabytes: float, fix: str, *, where: str) -> None:
    """Refuse arrays that this machine cannot hold.

    Parameters
    ----------
    what : str
        They are, in words.
    gigabytes : float
        Of 1e9 bytes.
    fix : str
    where : str
        Whose they are.

    Raises
    ------
    AdvpriorError
        ``PRI084``.

    Examples
    --------
    >>> require_room("one number", 8e-9, "take none", where="here")
    """
    memory = machine_memory_gb()
    if memory is not None and gigabytes > SHARE * memory:
        raise AdvpriorError(
            "PRI084",
            "an evaluation does not fit into the memory of this machine",
            where=where,
            actual=f"{what}: {gigabytes:,.0f} GB",
            expected=f"at most {SHARE * memory:,.0f} GB, {SHARE:.0%} of its {memory:,.0f}",
            fix=fix,
        )
