"""What readers of one file of events share: its checks, the time plan around a cut-off, and the tables that they write.

Such data has no ads and no impressions: it measures a predictor (the next advertiser), never a ranker. The file is not
ours to ship: it is read from a path that its user gives, and nothing of it but tables is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from advprior.store.contract import EVENTS, PREDICTOR_ONLY, TimePlan
from advprior.store.errors import AdvpriorError
from advprior.store.runs import is_current, new_run, run_key, sha256_file

if TYPE_CHECKING:
    import pandas as pd

#: Events of one user are rare in such data, so weekly priors would hardly differ and cost four times as much;
#: popularity moves within months, which four weeks still follow.
SNAPSHOT_EVERY = timedelta(days=28)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class EventFile:
    """A data set that comes as one Parquet file of events.

    Parameters
    ----------
    name : str
        Of the data set.
    columns : tuple of str
        Those that are read.
    time : str
        Which of them is the time, with a zone.
    order : tuple of str
        Columns to sort by, so that nothing depends on the file's own order.
    note : str
        What the data is and is not, for the manifest.
    fix : str
        What to do where the file is another one.
    code_version : int
        Raised when the same file gives other tables.
    """

    name: str
    columns: tuple[str, ...]
    time: str
    order: tuple[str, ...]
    note: str
    fix: str
    code_version: int

    def read(self, source: Path) -> pd.DataFrame:
        """Read the columns that are needed, in time order.

        Raises
        ------
        AdvpriorError
            ``DAT001`` no such file, ``DAT002`` no Parquet file, ``DAT003`` missing columns, ``DAT004`` times without a
            zone, ``DAT007`` no rows.
        """
        import pandas as pd

        from advprior.store.tables import read_parquet

        self.require(source)
        raw = read_parquet(source, fix=self.fix)
        missing = [column for column in self.columns if column not in raw.columns]
        if missing:
            raise AdvpriorError(
                "DAT003",
                f"missing column: {', '.join(missing)}",
                where=str(source),
                actual=", ".join(map(str, raw.columns)) or "no columns",
                expected=", ".join(self.columns),
                fix=self.fix,
            )
        if not isinstance(raw[self.time].dtype, pd.DatetimeTZDtype):
            raise AdvpriorError(
                "DAT004",
                "wrong type: times without a zone",
                where=f"{source}: {self.time}",
                actual=str(raw[self.time].dtype),
                expected="datetime64[us, UTC]",
                fix=self.fix,
            )
        if not len(raw):
            raise AdvpriorError(
                "DAT007", "empty table", where=str(source), actual="0 rows", expected="events", fix=self.fix
            )
        return raw[list(self.columns)].sort_values(list(self.order), kind="stable").reset_index(drop=True)

    def require(self, source: Path) -> None:
        """Refuse a path that is no file (``DAT001``)."""
        if not Path(source).is_file():
            problem = "a folder" if Path(source).is_dir() else "no such file"
            raise AdvpriorError(
                "DAT001",
                "a file is missing",
                where=str(source),
                actual=problem,
                expected="a Parquet file",
                fix=self.fix,
            )

    def build(
        self,
        source: Path,
        out: Path,
        canonical: Callable[[pd.DataFrame, datetime], dict[str, pd.DataFrame]],
        *,
        cutoff: datetime,
        force: bool = False,
    ) -> bool:
        """Write the canonical tables of a file as a finished run folder; False when it was up to date.

        Parameters
        ----------
        source : Path
            Read, never copied.
        out : Path
            Folder to write; replaced as a whole, or not at all.
        canonical : function
            Tables from what `read` gives and the cut-off.
        cutoff : datetime
            ``finetune_end`` of the time plan: move it to tune on earlier labels.
        force : bool
            Build even when ``out`` is up to date.

        Raises
        ------
        AdvpriorError
            What `read`, `time_plan` and `advprior.store.schemas.validate_tables` raise; ``DAT044`` when ``out`` holds
            the source.
        """
        source, out = Path(source), Path(out)
        self.require(source)
        if out.resolve() in source.resolve().parents:
            raise AdvpriorError(
                "DAT044",
                "--out would replace your own file",
                where=str(out),
                actual=f"{source} lies there",
                expected="another folder",
                fix="choose another --out",
            )
        config = {"data_set": self.name, "cutoff": cutoff.isoformat()}
        inputs = {"source": sha256_file(source)}
        key = run_key("data", config, inputs, self.code_version)
        if not force and is_current(out, key):
            return False

        from advprior.store.schemas import validate_tables
        from advprior.store.tables import write_parquet

        tables = canonical(self.read(source), cutoff)
        times = tables[EVENTS]["timestamp"]
        plan = time_plan(times.iloc[0].to_pydatetime(), times.iloc[-1].to_pydatetime(), cutoff)
        warnings = validate_tables(tables, plan=plan, where=str(source), fix=self.fix)
        with new_run(out, "data", config=config, inputs=inputs, key=key) as run:
            for name, table in tables.items():
                write_parquet(table, run.path / f"{name}.parquet")
            run.facts.update(
                source=self.name,
                purpose=PREDICTOR_ONLY,
                note=self.note,
                time_plan=plan.to_json(),
                rows={name: len(table) for name, table in tables.items()},
                warnings=warnings,
            )
        return True


def time_plan(first: datetime, last: datetime, cutoff: datetime) -> TimePlan:
    """The time plan around a cut-off: all before it fits, all from it on is to be predicted.

    Nothing is ranked here, so the later splits only have to be in order: half and three quarters of what is left.

    Parameters
    ----------
    first, last : datetime
        Time of the first and of the last event.
    cutoff : datetime
        Becomes ``finetune_end``.

    Raises
    ------
    AdvpriorError
        ``DAT046`` when fewer than four days of events follow the cut-off, or none precedes it.

    Examples
    --------
    >>> from datetime import UTC
    >>> first, last, cutoff = (datetime(year, 1, day, tzinfo=UTC) for year, day in ((2020, 1), (2023, 5), (2022, 1)))
    >>> plan = time_plan(first, last, cutoff)
    >>> plan.train_end.date().isoformat(), plan.valid_end.date().isoformat(), plan.end.date().isoformat()
    ('2022-07-05', '2022-10-05', '2023-01-06')
    """
    end = last.replace(hour=0, minute=0, second=0, microsecond=0) + DAY
    left = (end - cutoff) // DAY
    if not first < cutoff or left < 4:
        raise AdvpriorError(
            "DAT046",
            "the cut-off does not divide the data",
            where="--cutoff",
            actual=f"{cutoff:%Y-%m-%d}",
            expected=f"after {first:%Y-%m-%d} and at most {end - 4 * DAY:%Y-%m-%d}",
            fix="choose another --cutoff",
        )
    return TimePlan(
        first, cutoff, cutoff + left // 2 * DAY, cutoff + left * 3 // 4 * DAY, end, SNAPSHOT_EVERY, timedelta(hours=1)
    )


def by_advertiser(table: pd.DataFrame, columns: Sequence[str] = ("advertiser_id", "advertiser_name")) -> pd.DataFrame:
    """Each advertiser's id and name, once, by id."""
    return (
        table[list(columns)]
        .drop_duplicates(columns[0])
        .sort_values(columns[0])
        .set_axis(["advertiser_id", "name"], axis=1)
        .reset_index(drop=True)
    )


def with_texts(advertisers: pd.DataFrame, texts: pd.Series) -> pd.DataFrame:
    """The advertisers with their catalog texts; None where there is none yet."""
    described = advertisers.assign(text=advertisers["advertiser_id"].map(texts).astype(object)).astype(object)
    return described.where(described.notna(), None)
