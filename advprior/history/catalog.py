"""The catalog: the versioned list of advertisers that every prior is normalised over.

Index order is the order of columns in log-prob matrices; the version is a digest of ids and names,
saved with each model and with each prior, so that a changed list is refused and never misread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from advprior.history.masking import MASK, mask_names
from advprior.store.contract import ADVERTISER_ID, DEPARTMENT, NAME, TEXT
from advprior.store.errors import AdvpriorError
from advprior.store.runs import digest, write_json

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Catalog:
    """Advertisers in index order.

    Parameters
    ----------
    ids, names : tuple of str
    texts : tuple of str
        What else is known of each advertiser in words (what it sells), or nothing at all. The version does not depend
        on it: a text may be brought up to date without another catalog.
    departments : tuple of str
        What is coarser than a category, of each advertiser (empty where it has none), or nothing at all. As of when the
        tables were made; the version does not depend on it either.

    >>> catalog = Catalog(("a1", "a2"), ("Tea house", "Bakery"))
    >>> len(catalog), catalog.index["a2"], catalog.version == Catalog(("a1",), ("Tea house",)).version
    (2, 1, False)
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    texts: tuple[str, ...] = ()
    departments: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def version(self) -> str:
        """Digest of ids and names in order."""
        return digest([list(self.ids), list(self.names)])

    @property
    def index(self) -> dict[str, int]:
        """Advertiser id -> index."""
        return {advertiser: i for i, advertiser in enumerate(self.ids)}

    def department_codes(self) -> npt.NDArray[np.int32]:
        """Department of each advertiser as a number [N], −1 where it has none; empty where no advertiser has one.

        >>> Catalog(("a1", "a2", "a3"), ("A", "B", "C"), departments=("Food", "", "Drugs")).department_codes().tolist()
        [1, -1, 0]
        """
        codes = {name: code for code, name in enumerate(sorted({d for d in self.departments if d}))}
        return np.asarray([codes.get(department, -1) for department in self.departments], np.int32)

    def descriptions(self, between: str = ": ") -> tuple[str, ...]:
        """Name and text of each advertiser, or its name alone where there is no text.

        >>> Catalog(("a1", "a2"), ("Tea house", "Bakery"), ("green tea, cups", "")).descriptions()
        ('Tea house: green tea, cups', 'Bakery')
        """
        texts = self.texts or ("",) * len(self)
        return tuple(f"{name}{between}{text}" if text else name for name, text in zip(self.names, texts, strict=True))

    def masked(self) -> Catalog:
        """The same advertisers with their names taken out of names and texts: for a control that cannot know a brand.

        >>> Catalog(("a1", "a2"), ("Tea Leaf", "Rye Inc"), ("cups by Tea Leaf", "")).masked().descriptions()
        ('this advertiser: cups by this advertiser', 'this advertiser')
        """
        texts = mask_names(self.texts, self.names) if self.texts else ()
        return replace(self, names=(MASK,) * len(self), texts=texts)

    def to_read(self, *, masked: bool) -> Catalog:
        """What a predictor reads of it; the run keeps the catalog itself, whose version depends on the names."""
        return self.masked() if masked else self

    def save(self, path: Path) -> None:
        """Write ``{"version", "advertisers": [{"advertiser_id", "name", "text", "department"}, ...]}``.

        Text and department are left out where there is none.
        """
        advertisers = [{ADVERTISER_ID: i, NAME: n} for i, n in zip(self.ids, self.names, strict=True)]
        for column, values in ((TEXT, self.texts), (DEPARTMENT, self.departments)):
            for advertiser, value in zip(advertisers, values, strict=False):
                if value:
                    advertiser[column] = value
        write_json(path, {"version": self.version, "advertisers": advertisers})

    @classmethod
    def load(cls, path: Path) -> Catalog:
        """Read what `save` wrote."""
        data = json.loads(Path(path).read_text())["advertisers"]
        texts, departments = (tuple(a.get(column, "") for a in data) for column in (TEXT, DEPARTMENT))
        return cls(
            tuple(a[ADVERTISER_ID] for a in data),
            tuple(a[NAME] for a in data),
            texts if any(texts) else (),
            departments if any(departments) else (),
        )

    @classmethod
    def from_table(cls, advertisers: pd.DataFrame) -> Catalog:
        """Catalog of an ``advertisers`` table, ordered by id.

        Raises
        ------
        AdvpriorError
            ``PRI001`` when an advertiser has no name: the LLM knows it by nothing else.
        """
        table = advertisers.sort_values(ADVERTISER_ID, kind="stable")
        names = table[NAME].fillna("").astype(str).str.strip()
        unnamed = table.loc[names == "", ADVERTISER_ID]
        if len(unnamed):
            raise AdvpriorError(
                "PRI001",
                f"{len(unnamed)} advertisers have no name",
                where="advertisers.parquet, column name",
                actual=", ".join(map(str, unnamed.head(5))),
                expected="a name for each",
                fix="fill in the names, then run `advprior data check`",
            )
        texts, departments = (
            tuple(table[column].fillna("").astype(str).str.strip()) if column in table else ()
            for column in (TEXT, DEPARTMENT)
        )
        return cls(
            tuple(table[ADVERTISER_ID].astype(str)),
            tuple(names),
            texts if any(texts) else (),
            departments if any(departments) else (),
        )

    def require_same(self, other: Catalog, *, where: str, fix: str) -> None:
        """Refuse another catalog.

        Raises
        ------
        AdvpriorError
            ``PRI002`` naming what was added, removed or renamed.
        """
        if self.version == other.version:
            return
        ours, theirs = dict(zip(self.ids, self.names, strict=True)), dict(zip(other.ids, other.names, strict=True))
        added, removed = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
        renamed = sorted(a for a in set(ours) & set(theirs) if ours[a] != theirs[a])
        parts = [
            f"{len(ids)} {what} ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})"
            for what, ids in (("added", added), ("removed", removed), ("renamed", renamed))
            if ids
        ]
        raise AdvpriorError(
            "PRI002",
            "the catalog changed since the predictor was fitted",
            where=where,
            actual=f"version {other.version}: {'; '.join(parts) or 'another order'}",
            expected=f"version {self.version}",
            fix=fix,
        )
