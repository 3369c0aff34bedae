"""Candidates from two towers, with slots for ads of predicted advertisers, in the request path.

The user's vector is computed in the request from the user's own row (`frame.streams.token_column`, profile), with
the same counts as `ranking.candidates.inputs.Pasts` takes off the tables; the ads' vectors, and the index over them,
when ads are read. What is chosen is what `ranking.candidates.choose.choose` chooses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advprior.store.arrays import Float, Int
from advprior.store.contract import (
    AD_ID,
    ADVERTISER_ID,
    CATALOG_VERSION,
    CATEGORY,
    USER_HISTORY_VIEW,
    USER_PROFILE_VIEW,
    prior_view,
)
from advprior.store.errors import AdvpriorError
from advprior.store.runs import read_manifest
from ranking.candidates.inputs import LEVELS as TOKEN_LEVELS
from ranking.candidates.nearest import EXACT_UP_TO, Nearest, best
from ranking.candidates.towers import FIX, STEP, Towers
from ranking.frame.fading import FADES
from ranking.frame.streams import EVENTS, LEVELS, token_column
from ranking.service.ads import AdTable
from ranking.service.candidates import ORIGINS, PREDICTED, TOWERS, Choice
from ranking.service.catalogs import Catalogs, HistoryCatalog
from ranking.service.priors import Prior
from ranking.service.quota import Quota
from ranking.service.reader import OnlineReader
from ranking.service.rows import Row, ViewRow, floats

log = logging.getLogger("advprior.service")

#: Below this share of ads that the towers can place by ad or advertiser, they were fitted for other ads.
_PLACED_SHARE = 0.5
_PROBES = 64


class TowerSource:
    """Towers, served.

    Parameters
    ----------
    towers : Towers
    quota : Quota, optional
        None: the towers alone.
    reader, catalogs
        Of the engine.
    limit : int
        Candidates per request: what an index is tuned for.
    exact_up_to : int
        Ads up to which the search is exact.

    Raises
    ------
    AdvpriorError
        ``SRV010`` when the ads are not those of the towers, ``SRV011`` when a user's row lacks what the towers read.
    """

    def __init__(
        self,
        towers: Towers,
        quota: Quota | None,
        reader: OnlineReader,
        catalogs: Catalogs,
        *,
        limit: int = 500,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        self._towers, self.quota, self._catalogs = towers, quota, catalogs
        self._limit, self._exact_up_to = limit, exact_up_to
        vocabulary = towers.vocabulary
        self._profile = {token: i for i, token in enumerate(vocabulary.profiles)}
        self._fields = sorted({token.partition("=")[0] for token in vocabulary.profiles})
        self._profile_at = len(FADES) * sum(vocabulary.sizes.values())
        self._columns: dict[str, dict[str, Int]] = {}
        self._latest: tuple[AdTable, Nearest] | None = None
        self.fitted_share = 0.0
        self._check_service(reader)
        if catalogs.newest is not None:
            self._check_ads(catalogs.newest)

    # -- does it fit -----------------------------------------------------------------------------------------------

    def _check_service(self, reader: OnlineReader) -> None:
        history, profile = reader.views.get(USER_HISTORY_VIEW), reader.views.get(USER_PROFILE_VIEW)
        lacking = [] if history is None else [n for n in map(token_column, LEVELS) if n not in history.features]
        if history is None:
            lacking = [USER_HISTORY_VIEW]
        lacking += [name for name in self._fields if profile is None or name not in profile.text]
        if lacking:
            raise AdvpriorError(
                "SRV011",
                "the store does not hold what the towers read of a user",
                where=", ".join(reader.views_of),
                actual=f"no {', '.join(lacking[:5])}",
                expected=f"{len(LEVELS)} token columns of {USER_HISTORY_VIEW} and {len(self._fields)} profile fields",
                fix="advprior rank features --tables TABLES --repo REPO ; feast -c REPO apply ; feast materialize; or "
                "fit towers on these tables",
            )

    def _check_ads(self, catalog: HistoryCatalog) -> None:
        tokens = self._towers.vocabulary.ad_tokens(_frame(catalog.ads, catalog.advertisers, catalog.categories))
        self.fitted_share = float((tokens[:, 0] >= 0).mean()) if len(tokens) else 0.0
        placed = float((tokens[:, :3] >= 0).any(axis=1).mean()) if len(tokens) else 0.0
        if placed < _PLACED_SHARE:
            raise AdvpriorError(
                "SRV010",
                "the towers were fitted for other ads",
                where=f"catalog {catalog.version}",
                actual=f"{placed:.0%} of {len(catalog.ads):,} ads, or their advertisers, are those of the towers",
                expected=f"{_PLACED_SHARE:.0%}",
                fix=FIX,
            )

    # -- when ads are read -----------------------------------------------------------------------------------------

    def prepare(self, table: AdTable) -> None:
        """Vectors of the ads and their index; those of the same ads are kept."""
        last = self._latest
        if last is not None and (last[0].ids, last[0].advertisers, last[0].categories) == (
            table.ids,
            table.advertisers,
            table.categories,
        ):
            nearest = last[1]
        else:
            nearest = self._index_of(table)
        table.cached(self, lambda: nearest)
        self._latest = (table, nearest)
        histories = dict(self._catalogs.histories)
        for catalog in histories.values():
            self._columns_of(catalog)
        self._columns = {version: self._columns[version] for version in histories}  # no more than are remembered
        if self.quota is not None:
            for prior in list(self._catalogs.priors.get(prior_view(self.quota.predictor), {}).values()):
                self._ads_by_advertiser(table, nearest, prior.version, prior.advertisers)

    def _index_of(self, table: AdTable) -> Nearest:
        vectors, bias = self._towers.ads(_frame(table.ids, table.advertisers, table.categories))
        whole = np.concatenate([vectors, bias[:, None]], axis=1)
        limit = min(self._limit, len(whole))
        # users are made up only where there is an index to tune
        probes = self._probes(table) if len(whole) > self._exact_up_to else None
        nearest = Nearest(whole, exact_up_to=self._exact_up_to, probes=probes, k=limit)
        log.info("candidates: ads placed", extra=self._about(nearest))
        return nearest

    def _probes(self, table: AdTable) -> Float:
        """Vectors of made-up users, with events at a few ads each."""
        rng = np.random.default_rng(0)
        codes = self._towers.vocabulary.codes(_frame(table.ids, table.advertisers, table.categories))
        vectors = []
        for _ in range(_PROBES):
            chosen = rng.integers(0, len(table.ids), rng.integers(1, 20))
            at, start = [], 0
            for level in TOKEN_LEVELS:
                size = self._towers.vocabulary.sizes[level]
                tokens = np.unique(codes[level][chosen])
                tokens = tokens[tokens >= 0]
                at += [tokens + start + i * size for i in range(len(FADES))]
                start += len(FADES) * size
            columns = np.concatenate(at)
            vectors.append(self._vector(columns, np.log1p(rng.exponential(2.0, len(columns))).astype(np.float32)))
        return np.array(vectors)

    def _columns_of(self, catalog: HistoryCatalog) -> dict[str, Int]:
        """Column of each id of a history in the users' matrix: int64 [ids, fades] per level, −1: none."""
        if catalog.version not in self._columns:
            vocabulary, start, columns = self._towers.vocabulary, 0, {}
            named = (vocabulary.advertisers, vocabulary.categories, vocabulary.pairs)
            for level, names, size in zip(LEVELS, named, vocabulary.sizes.values(), strict=True):
                place = {name: i for i, name in enumerate(names)}
                code = np.array([place.get(name, -1) for name in catalog.names[level]], dtype=np.int64)[:, None]
                columns[level] = np.where(code >= 0, code + start + size * np.arange(len(FADES)), -1)
                start += len(FADES) * size
            self._columns[catalog.version] = columns
        return self._columns[catalog.version]

    def _ads_by_advertiser(
        self, table: AdTable, nearest: Nearest, version: str, advertisers: list[str]
    ) -> tuple[Int, Int, Float]:
        """Rows of ads by advertiser of a prior's catalog, where each advertiser's begin, and their vectors in a row."""

        def make() -> tuple[Int, Int, Float]:
            place = table.advertiser_index(version, advertisers)[:-1]
            order = np.argsort(place, kind="stable").astype(np.int64)
            return order, np.searchsorted(place[order], np.arange(len(advertisers) + 1)), nearest.vectors[order]

        rows: tuple[Int, Int, Float] = table.by_catalog((version, "by advertiser"), make)
        return rows

    # -- in a request ----------------------------------------------------------------------------------------------

    def choose(self, table: AdTable, rows: Mapping[str, Row], priors: Mapping[str, Prior], limit: int) -> Choice:
        """The towers' best ads, with slots for those of predicted advertisers where the user has a prior."""
        nearest: Nearest = table.cached(self, lambda: self._index_of(table))
        vector, whole = self.user_vector(rows)
        degraded = [] if whole else ["candidates_inputs_missing"]
        quota = self.quota
        slots = 0 if quota is None or quota.predictor not in priors else round(quota.share * limit)
        ads, _ = nearest.top(vector, limit)
        if not slots or quota is None:
            chosen = Choice.all_from(ads, TOWERS)
            return Choice(chosen.ads, chosen.origin, degraded)
        head = ads[: limit - slots]
        extra = self._predicted(
            self._likely_ads(table, priors[quota.predictor], nearest, quota.top), vector, head, slots
        )
        rest = ads[limit - slots :]
        rest = rest[~np.isin(rest, extra)][: slots - len(extra)]
        origin = np.full(len(head) + len(extra) + len(rest), ORIGINS.index(TOWERS), dtype=np.int8)
        origin[len(head) : len(head) + len(extra)] = ORIGINS.index(PREDICTED)
        return Choice(np.concatenate([head, extra, rest]), origin, degraded)

    def _likely_ads(self, table: AdTable, prior: Prior, nearest: Nearest, top: int) -> tuple[Int, Float]:
        """Rows and vectors of the ads of a prior's likeliest advertisers."""
        order, starts, vectors = self._ads_by_advertiser(table, nearest, prior.version, prior.advertisers)
        size = len(prior.log_probs)
        # rank <= top, ties sharing the better rank: as `ranking.frame.gather.gather_priors` has it
        edge = np.partition(prior.log_probs, size - top)[size - top] if top < size else -np.inf
        spans = [slice(starts[i], starts[i + 1]) for i in np.flatnonzero(prior.log_probs >= edge).tolist()]
        return np.concatenate([order[span] for span in spans]), np.concatenate([vectors[span] for span in spans])

    @staticmethod
    def _predicted(likely: tuple[Int, Float], vector: Float, head: Int, slots: int) -> Int:
        """The best of the likely ads for a user, those in ``head`` left out."""
        ads, vectors = likely
        rows = ads[best(vectors @ vector, slots + len(head))]  # enough, whichever of them are in the head
        return rows[~np.isin(rows, head)][:slots]

    def user_vector(self, rows: Mapping[str, Row]) -> tuple[Float, bool]:
        """A user's vector, one longer than the towers' for the ads' bias; False where the row held less than it should.

        Equal to ``Towers.users`` of ``Pasts.at`` the row's snapshot, but for rounding.
        """
        columns, values, whole = [], [], True
        row = rows.get(USER_HISTORY_VIEW)
        version = row.text(CATALOG_VERSION) if isinstance(row, ViewRow) else None
        catalog = None if version is None else self._catalogs.histories.get(version)
        if isinstance(row, ViewRow) and catalog is not None:
            for level, columns_of in self._columns_of(catalog).items():
                ids_message, tokens = row.values.get(EVENTS.online(level)[0]), row.values.get(token_column(level))
                ids = np.array([] if ids_message is None else ids_message.int32_list_val.val, dtype=np.int64)
                value = np.empty(0, np.float32) if tokens is None else floats(tokens.float_list_val)
                if len(value) != len(FADES) * len(ids) or (
                    len(ids) and not 0 <= ids.min() <= ids.max() < len(columns_of)
                ):
                    whole = False
                    continue
                at = columns_of[ids].ravel()
                columns.append(at[at >= 0])
                values.append(value[at >= 0])
        profile = rows.get(USER_PROFILE_VIEW)
        if isinstance(profile, ViewRow):
            tokens_of = [self._profile.get(f"{name}={profile.text(name)}") for name in self._fields]
            at = np.array([self._profile_at + i for i in tokens_of if i is not None], dtype=np.int64)
            columns.append(at)
            values.append(np.ones(len(at), dtype=np.float32))
        if not columns:
            return self._vector(np.empty(0, np.int64), np.empty(0, np.float32)), whole
        return self._vector(np.concatenate(columns), np.concatenate(values)), whole

    def _vector(self, columns: Int, values: Float) -> Float:
        a = self._towers.arrays
        values = values / np.float32(max(float(np.sqrt(values @ values)), 1e-6))
        hidden = np.maximum(values @ a["user_in"][columns] + a["user_in_bias"], 0.0)
        return np.append(hidden @ a["user_out"], np.float32(1.0)).astype(np.float32)

    def about(self) -> dict[str, Any]:
        """What chooses, for people."""
        return self._about(None if self._latest is None else self._latest[1])

    def _about(self, nearest: Nearest | None) -> dict[str, Any]:
        about: dict[str, Any] = {"source": TOWERS, "ads_known": round(self.fitted_share, 4)}
        if nearest is not None:
            about |= {"search": nearest.kind, "recall": round(nearest.recall, 4)}
        if self.quota is not None:
            about |= {"predictor": self.quota.predictor, "quota": self.quota.share, "top": self.quota.top}
        return about


def load_towers(folder: Path) -> Towers:
    """A finished ``rank towers`` run.

    Raises
    ------
    AdvpriorError
        ``RUN00x``, or ``RNK030``.
    """
    read_manifest(folder, step=STEP, fix=FIX)
    return Towers.load(folder)


def _frame(ads: Sequence[str], advertisers: Sequence[str | None], categories: Sequence[str | None]) -> Any:
    """What the vocabulary reads of ads."""
    import pandas as pd

    named = {AD_ID: ads, ADVERTISER_ID: advertisers, CATEGORY: categories}
    return pd.DataFrame({name: np.array(list(values), dtype=object) for name, values in named.items()})
