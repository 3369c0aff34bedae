"""A user's column in the type of its canonical one, by conversions that lose nothing.

Databases and writers unload the same thing in many types: numbers as decimals or nullable integers, text as bytes or
categories, days as dates, ids as UUIDs or unsigned 64-bit integers. A column that cannot be converted stays as it is,
for the check to report.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from advprior.store.contract import (
    ARRIVED,
    CLICKED,
    CONTEXT_PREFIX,
    IMPRESSION_ID,
    KNOWN_FROM,
    LABEL,
    LABEL_TIME,
    PROFILE_PREFIX,
    SLATE_ID,
    TIMESTAMP,
    VALUE,
)

if TYPE_CHECKING:
    import pandas as pd

OPTIONAL_TIMES = (KNOWN_FROM, ARRIVED, LABEL_TIME)
#: Whole numbers up to here are the same as float64.
EXACT = 2**53


def canonical_column(name: str, column: pd.Series[Any], zone: str | None) -> pd.Series[Any]:
    """A user's column in the type of the canonical column ``name``, where nothing is lost by it.

    Parameters
    ----------
    name : str
        Canonical name.
    column : Series
        As the file has it.
    zone : str or None
        Time zone of times that state none; without one they stay without.

    Examples
    --------
    >>> import pandas as pd
    >>> canonical_column("user_id", pd.Series([7, None]), None).tolist()
    ['7', None]
    >>> canonical_column("slate_id", pd.Series([2**63 + 1, 2**63 + 9, 2**63 + 1], dtype="uint64"), None).tolist()
    [0, 1, 0]
    """
    import pandas as pd

    column = _plain(column)
    kind = column.dtype.kind
    if name in OPTIONAL_TIMES and column.isna().all():
        return pd.Series(
            pd.NaT, column.index, dtype="datetime64[us, UTC]"
        )  # a file has no type for what is missing in every row
    if name in (TIMESTAMP, *OPTIONAL_TIMES):
        return _in_utc(column, zone) if kind == "M" else column
    if name in (LABEL, CLICKED):
        return _zero_or_one(column)
    if name in (IMPRESSION_ID, SLATE_ID):
        return _row_id(column)
    if name == VALUE:
        return column.astype("float64") if kind in "iufb" else column
    if name.startswith(CONTEXT_PREFIX):
        return _context(column)
    if name.startswith(PROFILE_PREFIX):
        return _profile(column)
    return _as_text(column)


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """Without what only says how a writer kept the values: categories, decimals, bytes, UUIDs, dates."""
    import numpy as np
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = column.cat.categories.to_series()
        if categories.dtype.kind in "iub" and column.isna().any():  # with gaps, whole numbers would go through floats
            categories = categories.convert_dtypes(convert_floating=False)
        column = categories.reset_index(drop=True).reindex(column.cat.codes).set_axis(column.index)
    if column.dtype != object:
        return column
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    if inferred == "decimal":
        return _without_decimals(column)
    if inferred == "bytes":
        return _without_bytes(column)
    if inferred == "boolean" and column.notna().all():
        return column.astype(bool)
    if inferred == "date":
        return pd.Series(np.array(column.where(column.notna(), None), dtype="datetime64[us]"), column.index)
    if inferred == "mixed" and all(isinstance(value, uuid.UUID) for value in column.dropna()):
        return column.map(str, na_action="ignore")
    return column


def _without_decimals(column: pd.Series[Any]) -> pd.Series[Any]:
    """Decimals, as databases unload numbers: integers where all are whole and none is missing, else floats.

    Whole numbers that no float holds exactly stay as they are, for the check to report.
    """
    given = column.dropna()
    if all(value.is_finite() and value == value.to_integral_value() and abs(value) < 2**63 for value in given):
        if len(given) == len(column):
            return column.map(int).astype("int64")
        if any(abs(value) > EXACT for value in given):
            return column
    return column.astype("float64")


def _without_bytes(column: pd.Series[Any]) -> pd.Series[Any]:
    """Bytes, as some writers keep text, in UTF-8; sixteen bytes that are none are UUIDs, as DuckDB and Arrow keep them.

    Other bytes stay, for the check to report.
    """
    try:
        return column.map(lambda value: value.decode("utf-8"), na_action="ignore")
    except UnicodeDecodeError:
        if column.map(len, na_action="ignore").dropna().eq(16).all():
            return column.map(lambda value: str(uuid.UUID(bytes=value)), na_action="ignore")
        return column


def _in_utc(column: pd.Series[Any], zone: str | None) -> pd.Series[Any]:
    """Times as UTC microseconds; times without a zone are left as they are unless the mapping states one."""
    import numpy as np

    if getattr(column.dtype, "tz", None) is None:
        if zone is None:
            return column
        # in the hour that clocks repeat, take the second; in the hour they skip, the next valid moment
        twice = np.zeros(len(column), dtype=bool)
        column = column.dt.tz_localize(zone, ambiguous=twice, nonexistent="shift_forward")
    times: pd.Series[Any] = column.dt.tz_convert("UTC").astype("datetime64[us, UTC]")
    return times


def _zero_or_one(column: pd.Series[Any]) -> pd.Series[Any]:
    """Flags, numbers and the texts "0" and "1", where all are one of the two."""
    from advprior.store.columns import is_text

    if (column.dtype.kind in "iubf" and column.isin([0, 1]).all()) or (
        is_text(column) and column.isin(["0", "1"]).all()
    ):
        return column.astype("int8")
    return column


def _row_id(column: pd.Series[Any]) -> pd.Series[Any]:
    """Whole numbers as they are; texts, and numbers beyond 64 bits with a sign, numbered in the order of their rows."""
    import numpy as np
    import pandas as pd

    from advprior.store.columns import is_text

    if column.isna().any():
        return column
    kind = column.dtype.kind
    if is_text(column) or (kind == "u" and len(column) and column.max() > np.iinfo(np.int64).max):
        return pd.Series(pd.factorize(column)[0].astype("int64"), column.index)
    if kind in "iu" or (kind == "f" and (np.isfinite(column) & (column % 1 == 0) & (column.abs() <= EXACT)).all()):
        return column.astype("int64")
    return column


def _context(column: pd.Series[Any]) -> pd.Series[Any]:
    """Numbers and flags with gaps as float64, in which a gap is no number; the rest as it is."""
    import pandas as pd

    extension = isinstance(column.dtype, pd.api.extensions.ExtensionDtype) and column.dtype.kind in "iufb"
    flags = column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) == "boolean"
    return column.astype("float64") if extension or flags else column


def _profile(column: pd.Series[Any]) -> pd.Series[Any]:
    """What a user says of themselves, as text: flags as yes and no, moments in ISO 8601."""
    import pandas as pd

    given = column.notna()
    if column.dtype.kind == "b" or (column.dtype == object and given.any() and _are_flags(column)):
        return column.map(lambda flag: "yes" if flag else "no", na_action="ignore").astype(object).where(given, None)
    if column.dtype.kind == "M":
        days = bool((column.dropna() == column.dropna().dt.normalize()).all())
        written = column.map(lambda moment: f"{moment:%Y-%m-%d}" if days else moment.isoformat(), na_action="ignore")
        return written.astype(object).where(given, None)
    text = _as_text(column)
    if text.dtype.kind == "f":  # fractions: an id is none, a profile may be one
        return pd.Series([f"{value:.10g}" for value in text], column.index, dtype=object).where(given, None)
    return text


def _are_flags(column: pd.Series[Any]) -> bool:
    import pandas as pd

    return bool(pd.api.types.infer_dtype(column, skipna=True) == "boolean")


def _as_text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Text as objects; whole numbers (ids) and their floats, which missing values make of them, as text too."""
    import numpy as np
    import pandas as pd

    if column.dtype.kind == "f":
        numbers = column.dropna()
        if not (np.isfinite(numbers) & (numbers == np.floor(numbers)) & (numbers.abs() < EXACT)).all():
            return column
        column = column.astype("Int64")
    if column.dtype.kind in "iu" or isinstance(column.dtype, pd.StringDtype):
        text = column.astype("string").astype(object)
        text[text.isna()] = None
        return text
    return column
