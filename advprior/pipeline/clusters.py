"""Semantic clusters of ads and events, from what is written of each advertiser × category: ``advprior data clusters``.

The tables get a text column `cluster`, and the ranker's features counts by it (`ranking.frame.streams`). K-means over
the encodings of what was known before ``finetune_end``; an advertiser × category that came later joins the nearest of
these clusters and moves none. Which encoder reads the texts is said as for the text prior, so that the same column can
be made by an LLM, by words alone, by random weights, or, as a placebo, by chance.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.data.pairs import STEP
from advprior.history.catalog import Catalog
from advprior.pipeline.cluster_texts import ClusterTexts, clusters_in, read_texts
from advprior.pipeline.forecast import CLUSTERED_AT_ONCE, clusters_cost
from advprior.predictors.encoding.encode import encoder_identity
from advprior.predictors.encoding.settings import ENCODING_VERSION, Encoding, parse_encoding
from advprior.predictors.text.predictor import encode_catalog
from advprior.predictors.text.settings import TextSettings
from advprior.store.arrays import Float, Int
from advprior.store.contract import ADS, ADVERTISER_ID, CLUSTER, EVENTS, LEXICAL, TABLES
from advprior.store.errors import AdvpriorError
from advprior.store.progress import duration
from advprior.store.runs import MANIFEST, digest, is_current, manifest_digest, new_run, read_manifest, run_key
from advprior.store.tables import TABLES_FIX, load_time_plan, require_impressions, write_parquet_parts
from advprior.store.times import moment_us

if TYPE_CHECKING:
    import pandas as pd

CODE_VERSION = 2  # 2: events of who came after finetune_end have a cluster from when its first ad exists
NUMBER = 64
#: Starts of K-means, of which the best is taken; fewer where it reads the texts batch by batch.
STARTS, FEW_STARTS = 10, 3
_CLUSTERED = (ADS, EVENTS)


@dataclass(frozen=True)
class ClusterOptions:
    """How clusters are made.

    Parameters
    ----------
    base : str
        Encoder, as `advprior.predictors.encoding.settings.parse_encoding` reads it.
    number : int
        Of clusters.
    seed : int
        Of K-means, of random weights and of the shuffle.
    shuffled : bool
        Deal the clusters out to the texts at random: a partition of the same sizes that says nothing.
    """

    base: str = Encoding().base
    number: int = NUMBER
    seed: int = 0
    shuffled: bool = False


def build(
    tables: Path,
    out: Path,
    options: ClusterOptions,
    *,
    keep: bool = False,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Write the tables with a column `cluster` of ads and events as a run folder; False when it was up to date.

    Parameters
    ----------
    tables, out : Path
    options : ClusterOptions
    keep : bool
        Whoever has a cluster in ``out`` keeps it, and only who is new there joins the nearest: nothing that was counted
        before changes, whatever advertisers are called by now. Other options or an earlier ``finetune_end`` start anew.
    force : bool
        Build again, and start anew.
    say : callable

    Raises
    ------
    AdvpriorError
        ``DAT045`` without ads, ``DAT050`` without categories, ``DAT053`` where a column is there, ``DAT054`` where
        nothing is written, ``DAT055`` for fewer texts than clusters; what `advprior.predictors.encoding.encode` raises.
    """
    facts = dict(read_manifest(tables, step=STEP, fix=TABLES_FIX)["facts"])
    require_impressions(tables)
    _require_no_column(tables)
    encoding = parse_encoding(options.base)
    weights = digest(encoder_identity(encoding.base) | {"encoding": ENCODING_VERSION})
    config = {"data_set": "clusters", **asdict(options)}
    inputs = {"tables": manifest_digest(tables), "base": weights}
    key = run_key(STEP, config, inputs, CODE_VERSION)
    if not force and is_current(out, key):
        return False
    cutoff = load_time_plan(tables).finetune_end
    standing = _standing(out, config, weights, cutoff) if keep and not force else None
    cutoff = cutoff if standing is None else standing.cutoff
    texts = read_texts(tables, cutoff)
    if standing is None:
        _require_texts(texts.early, options, tables)
        say(_outlook(texts, options, cutoff, lexical=encoding.base == LEXICAL))
    with new_run(out, STEP, config=config, inputs=inputs, key=key) as run:
        clusters, about = _clusters(texts, standing or Standing({}, {}, cutoff), options)
        shares: dict[str, float] = {}
        for name in TABLES:
            source, target = Path(tables) / f"{name}.parquet", run.path / f"{name}.parquet"
            if name not in _CLUSTERED:
                _link(source, target)
                continue
            column = texts.rows[name].map(clusters)
            shares[name] = round(float(column.notna().mean()), 6) if len(column) else 0.0
            write_parquet_parts(_with_column(source, column), target)
        about |= {"shares": shares, "cutoff": cutoff.isoformat()}
        run.facts.update(facts, clusters=about)
    say(cluster_line(about))
    return True


@dataclass(frozen=True)
class Standing:
    """Clusters that were given out before.

    Parameters
    ----------
    clusters : dict of str to str
        By advertiser × category.
    origin : dict
        What read their texts, as a fact.
    cutoff : datetime
        What K-means was fitted on was known before it.
    """

    clusters: dict[str, str]
    origin: dict[str, Any]
    cutoff: datetime


def _standing(out: Path, config: dict[str, Any], weights: str, cutoff: datetime) -> Standing | None:
    """The clusters of the run that is there, where the same options made it of nothing from the cut-off on.

    A time plan that is proposed from the data's span moves with the data: clusters of an earlier one stay.
    """
    if not (out / MANIFEST).is_file():
        return None
    before = read_manifest(out)
    same = (before["step"], before["config"], before["inputs"].get("base")) == (STEP, config, weights)
    facts = before["facts"].get("clusters", {})
    fitted = facts.get("cutoff", before["facts"]["time_plan"]["finetune_end"])
    if not same or datetime.fromisoformat(fitted) > cutoff:
        return None
    origin = {name: facts[name] for name in ("base", "words") if name in facts}
    return Standing(clusters_in(out), origin, datetime.fromisoformat(fitted))


def _outlook(texts: ClusterTexts, options: ClusterOptions, cutoff: datetime, *, lexical: bool) -> str:
    """What will be read, and what that takes."""
    number, later = len(texts.early), len(texts.later)
    seconds = clusters_cost((number + later) / 1e6, len(texts.rows[EVENTS]) / 1e6, options.number, lexical=lexical)
    less = "" if lexical else ", less where their encodings are kept from before"
    return (
        f"data: {number:,} texts of advertiser × category from before {cutoff:%Y-%m-%d}, {later:,} later; "
        f"about {duration(seconds.seconds)} of processor time{less}"
    )


def _clusters(
    texts: ClusterTexts, standing: Standing, options: ClusterOptions
) -> tuple[dict[str, str], dict[str, Any]]:
    """The cluster of each advertiser × category by name, and what was made as facts."""
    encoding, clusters = parse_encoding(options.base), standing.clusters
    fitted = Catalog.from_table(texts.early)
    rest = Catalog.from_table(texts.later[~texts.later[ADVERTISER_ID].isin(clusters)])
    kept = np.array([int(clusters.get(id_, -1)) for id_ in fitted.ids])
    origin, joined = standing.origin, len(rest) + int((kept < 0).sum()) if clusters else 0
    if joined or not clusters:
        masked = encoding.masked
        read = fitted.to_read(masked=masked), rest.to_read(masked=masked)
        vectors, about = _vectors(*read, encoding, options.seed, moment_us(standing.cutoff))
        own, later = partition(*vectors, options.number, options.seed, kept if clusters else None)
        if options.shuffled:
            rng = np.random.default_rng(options.seed)
            own = np.where(kept >= 0, kept, rng.permutation(own)) if clusters else rng.permutation(own)
            later = rng.choice(own, len(later)) if clusters else rng.permutation(later)
        kept, origin = own, encoding.origin_facts(about)
        clusters = _named([*fitted.ids, *rest.ids], np.concatenate([own, later]), options.number) | clusters
    sizes = np.bincount(kept, minlength=options.number)
    facts: dict[str, Any] = {"number": options.number, "texts": len(fitted), "later": len(texts.later)}
    facts |= {"joined": joined, "shuffled": options.shuffled}
    return clusters, facts | {"smallest": int(sizes.min()), "largest": int(sizes.max())} | origin


def cluster_line(about: dict[str, Any]) -> str:
    """What was made, for a reader.

    >>> about = {"number": 64, "texts": 1180, "smallest": 3, "largest": 61, "shuffled": False}
    >>> cluster_line(about | {"shares": {"ads": 1.0, "events": 0.42}})
    'data: 64 clusters of 3 to 61 of 1,180 advertisers × categories; 100 % of ads and 42 % of events have one'
    """
    shares = " and ".join(f"{100 * share:.0f} % of {name}" for name, share in about["shares"].items())
    kind = "random groups" if about["shuffled"] else "clusters"
    joined = f"; {about['joined']:,} joined those of before" if about.get("joined") else ""
    return (
        f"data: {about['number']} {kind} of {about['smallest']} to {about['largest']} of {about['texts']:,} "
        f"advertisers × categories; {shares} have one{joined}"
    )


def partition(fitted: Float, later: Float, number: int, seed: int, kept: Int | None = None) -> tuple[Int, Int]:
    """Cluster of each row that K-means is fitted on [N, E], and of each later one, the nearest by its mean [M, E].

    Parameters
    ----------
    fitted, later : float array
    number, seed : int
        Of clusters, and of K-means.
    kept : int array [N], optional
        Clusters that rows have already, −1 for a row without one, which joins the nearest: nothing is fitted.

    Examples
    --------
    >>> near, far = np.zeros((3, 2), np.float32), np.ones((2, 2), np.float32)
    >>> own, later = partition(np.concatenate([near, far]), far[:1], 2, seed=0)
    >>> len(set(own[:3])), len(set(own[3:])), bool(own[0] != own[3]), bool(later[0] == own[3])
    (1, 1, True, True)
    >>> partition(np.concatenate([near, far]), far[:1], 2, 0, np.array([1, 1, -1, 0, -1]))[0].tolist()
    [1, 1, 1, 0, 0]
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.metrics import pairwise_distances_argmin

    if kept is not None:
        own = kept
    elif len(fitted) > CLUSTERED_AT_ONCE:
        own = MiniBatchKMeans(number, n_init=FEW_STARTS, random_state=seed).fit_predict(fitted).astype(np.int64)
    else:
        own = KMeans(number, n_init=STARTS, random_state=seed).fit_predict(fitted).astype(np.int64)
    names = np.unique(own[own >= 0])
    means = np.stack([fitted[own == name].mean(axis=0) for name in names])

    def nearest(rows: Float) -> Int:
        return names[pairwise_distances_argmin(rows, means)] if len(rows) else np.zeros(0, np.int64)

    joins = own < 0
    own = own.copy()
    own[joins] = nearest(fitted[joins])
    return own, nearest(later)


def _require_no_column(tables: Path) -> None:
    import pyarrow.parquet as pq

    clustered = [name for name in _CLUSTERED if CLUSTER in pq.read_schema(Path(tables) / f"{name}.parquet").names]
    if clustered:
        raise AdvpriorError(
            "DAT053",
            "the tables have clusters already",
            where=str(tables),
            actual=f"a column `{CLUSTER}` of {' and '.join(clustered)}",
            expected="tables without one",
            fix="build on the tables that these were made from; or leave out `clusters`, and keep the column",
        )


def _require_texts(early: pd.DataFrame, options: ClusterOptions, tables: Path) -> Catalog:
    """The catalog that K-means is fitted on."""
    catalog = Catalog.from_table(early)
    if not catalog.texts:
        raise AdvpriorError(
            "DAT054",
            "nothing is written of any advertiser × category",
            where=str(tables),
            actual="no text of events or advertisers, no department, before finetune_end",
            expected="words of products, a text of each advertiser, or departments",
            fix="map events.columns.text or advertisers.columns.text in mapping.yaml",
        )
    texts = len(set(zip(catalog.names, catalog.texts, strict=True)))
    if texts < options.number:
        raise AdvpriorError(
            "DAT055",
            "there are fewer texts than clusters",
            where="--number, or clusters.number of advprior.yaml",
            actual=f"{texts:,} texts of advertiser × category before finetune_end, {options.number:,} clusters",
            expected="several texts a cluster",
            fix=f"ask for {max(texts // 8, 2):,} clusters or fewer",
        )
    return catalog


def _vectors(
    fitted: Catalog, later: Catalog, encoding: Encoding, seed: int, cutoff: int
) -> tuple[tuple[Float, Float], dict[str, Any]]:
    """Encodings of names and texts, standardised by those that K-means is fitted on, and what made them."""
    settings = TextSettings(**encoding.model_dump(), seed=seed)
    words = [*fitted.names, *(text for text in fitted.texts if text)]
    own, origin = encode_catalog(fitted.names, fitted.texts, settings, cutoff=cutoff)
    mean, spread = np.nanmean(own, axis=0), np.nanstd(own, axis=0) + 1e-6
    others = np.zeros((0, own.shape[1]), np.float32)
    if len(later):
        texts = later.texts or ("",) * len(later)
        others, _ = encode_catalog(later.names, texts, settings, cutoff=cutoff, fitted_on=words)
    standard = tuple(np.nan_to_num((one - mean) / spread).astype(np.float32) for one in (own, others))
    return (standard[0], standard[1]), origin


def _named(ids: list[str], labels: Int, number: int) -> dict[str, str]:
    """Name of each id's cluster: a number, with as many digits as the last."""
    width = len(str(number - 1))
    return {id_: f"{label:0{width}d}" for id_, label in zip(ids, labels.tolist(), strict=True)}


def _with_column(source: Path, column: pd.Series[Any]) -> Iterator[Any]:
    """A table of Parquet, row group by row group, with one column more."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values, start = pa.array(column.to_numpy(object), pa.string(), from_pandas=True), 0
    with pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            part = file.read_row_group(group)
            yield part.append_column(CLUSTER, values[start : start + len(part)])
            start += len(part)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, where the disk can; what is written is renamed into place, never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
