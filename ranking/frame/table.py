"""A frame in Python: its rows, and what each of its features is. Every method gives a new frame and changes none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.contract import LABEL, PRIOR_VIEW_PREFIX, TIMESTAMP, USER_ID
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, features_from_json, groups_of
from advprior.store.runs import read_manifest
from ranking.frame.read import SPLITS, load_features, load_frame

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike


def how_made(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a frame's manifest says of how it was made, beside its facts."""
    keys = ("key", "inputs", "config", "versions", "finished", "seconds", "peak_memory_mb")
    return {key: manifest.get(key) for key in keys}


@dataclass(frozen=True, eq=False, repr=False)
class Frame:
    """Impressions with what was known before each of them.

    Parameters
    ----------
    rows : DataFrame
        One row per impression: keys, label, ``split`` (train, valid or test), segments and features.
    features : tuple of Feature
        What each feature column is.
    facts : dict
        Of the frame's manifest: time plan, coverage of priors, note on the data.
    manifest : dict
        What else the manifest says of how the frame was made; empty for a frame made in Python.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = pd.DataFrame({
    ...     "impression_id": [1, 2, 3], "slate_id": [1, 1, 2], "user_id": ["u", "u", "v"], "label": [0, 1, 0],
    ...     "split": ["train", "valid", "test"], "ad_rate": [0.1, 0.2, 0.3]})
    >>> frame = Frame(rows, (Feature("ad_rate", "ad", "ad_stats"),))
    >>> frame
    Frame: 3 impressions of 2 users, 1 of them positive
      train 1, valid 1, test 1 impressions
      1 features: ad 1
    >>> more = frame.with_prior("weekday", [1.0, 0.0, 1.0])
    >>> [feature.name for feature in more.features], "prior_weekday" in frame.rows
    (['ad_rate', 'prior_weekday'], False)
    """

    rows: pd.DataFrame
    features: tuple[Feature, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> Frame:
        """The frame of a finished ``advprior rank frame`` run.

        Raises
        ------
        AdvpriorError
            ``RUN001`` … ``RUN003``, ``DAT001``, ``DAT002``; ``RNK027`` when a split is empty, ``RNK029`` when the
            manifest does not say what the features are.
        """
        folder = Path(folder)
        rows, manifest = load_frame(folder), read_manifest(folder)
        return cls(rows, tuple(load_features(folder)), manifest["facts"], how_made(manifest))

    @classmethod
    def of(cls, rows: pd.DataFrame, facts: Mapping[str, Any]) -> Frame:
        """From rows and a manifest's facts, whose ``features`` say what the columns are."""
        return cls(rows, tuple(features_from_json(facts["features"])), facts)

    def with_feature(self, name: str, values: ArrayLike) -> Frame:
        """A frame with one more feature, which joins the baseline and so every arm.

        Parameters
        ----------
        name : str
            A new column's name.
        values : array [rows]
            Numbers or text, as known *before* each impression: nothing can check that here.

        Raises
        ------
        AdvpriorError
            ``CFG001`` when the name is taken, or the number of values is not that of the rows.
        """
        return self._with(name, values, group=name, source=name)

    def with_prior(self, name: str, values: ArrayLike) -> Frame:
        """A frame with one more prior, ``prior_<name>``: only an arm that adds it reads it.

        Parameters
        ----------
        name : str
            Short, as in ``with_prior("weekday", values)``; an arm adds ``prior_weekday``.
        values : array [rows]
            As for `with_feature`.

        Raises
        ------
        AdvpriorError
            ``CFG001`` when the name is taken, or the number of values is not that of the rows.
        """
        view = f"{PRIOR_VIEW_PREFIX}{name.removeprefix(PRIOR_VIEW_PREFIX)}"
        return self._with(view, values, group=view, source=view)

    def with_split(self, train_end: Any, valid_end: Any) -> Frame:
        """The same rows, split elsewhere: train before ``train_end``, validation before ``valid_end``, then test.

        Parameters
        ----------
        train_end, valid_end : str, datetime or Timestamp
            UTC where they name no zone.

        Raises
        ------
        AdvpriorError
            ``RNK027`` when a split would have no rows.
        """
        import pandas as pd

        cuts = [pd.Timestamp(cut) for cut in (train_end, valid_end)]
        cuts = [cut.tz_localize("UTC") if cut.tzinfo is None else cut for cut in cuts]
        place = np.searchsorted(pd.DatetimeIndex(cuts), pd.DatetimeIndex(self.rows[TIMESTAMP]), side="right")
        names = np.array(SPLITS, dtype=object)[place]
        empty = [name for name in SPLITS if not (names == name).any()]
        if empty:
            raise AdvpriorError(
                "RNK027",
                "a split of the frame has no rows",
                where=f"train to {cuts[0]}, validation to {cuts[1]}",
                actual=", ".join(empty),
                expected="rows in train, valid and test",
                fix=f"choose cuts between {self.rows[TIMESTAMP].min()} and {self.rows[TIMESTAMP].max()}",
            )
        rows = self.rows.copy(deep=False)
        rows["split"] = names
        return replace(self, rows=rows, manifest={})

    def _with(self, name: str, values: ArrayLike, *, group: str, source: str) -> Frame:
        import pandas as pd

        array = values.array if isinstance(values, pd.Series) else np.asarray(values)
        if name in self.rows or len(array) != len(self.rows):
            raise AdvpriorError(
                "CFG001",
                "this column cannot be added to the frame",
                where=name,
                actual="a column has this name" if name in self.rows else f"{len(array)} values",
                expected=f"a new name, and {len(self.rows)} values, one an impression",
                fix="choose another name, or align the values with frame.rows",
            )
        column = pd.Series(array, index=self.rows.index)
        text = not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        rows = self.rows.copy(deep=False)  # the columns are shared; the new one is of the copy alone
        rows[name] = column
        return replace(
            self, rows=rows, features=(*self.features, Feature(name, group, source, "category" if text else "float32"))
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {int((self.rows['split'] == name).sum()):,}" for name in SPLITS)
        groups = ", ".join(f"{group} {len(members)}" for group, members in groups_of(self.features).items())
        return (
            f"Frame: {len(self.rows):,} impressions of {self.rows[USER_ID].nunique():,} users, "
            f"{int(self.rows[LABEL].sum()):,} of them positive\n  {splits} impressions\n"
            f"  {len(self.features)} features: {groups}"
        )
