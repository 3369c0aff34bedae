"""The parts of a frame, some hundred thousand impressions at a time, and the checks over what all of them count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advprior.store.arrays import Int
from advprior.store.contract import prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.features import Feature, features_to_json
from advprior.store.offline import SPARK
from advprior.store.runs import read_manifest
from advprior.store.tables import load_time_plan
from advprior.store.times import as_datetimes
from ranking.frame import checks
from ranking.frame.coverage import Uses, coverage_gap
from ranking.frame.join import open_store, scalar_refs, views_in_no_service
from ranking.frame.lateness import late_events
from ranking.frame.part import FeastJoins, PartMaker, Request, Source, Sums
from ranking.frame.preflight import preflight
from ranking.frame.read import SPLITS
from ranking.frame.rows import SortedRows, split_of
from ranking.frame.sources import source_digests
from ranking.frame.views import view_folder

if TYPE_CHECKING:
    import pyarrow as pa


class FrameParts:
    """The parts of a frame, in order, each an Arrow table; to be gone through once, and then finished."""

    def __init__(self, store: Any, rows: SortedRows, source: Source) -> None:
        self.store, self.rows, self.source = store, rows, source
        self._request, self._plan = source.request, source.plan
        self._versions, self._sums = self._request.versions(), Sums()
        self._split = split_of(rows.moments, source.plan)
        test = np.flatnonzero(self._split == "test")
        self._golden = test[checks.golden_rows(rows.label[test])]
        self._features: list[Feature] = []

    @classmethod
    def open(cls, request: Request, spill: Path) -> FrameParts:
        """Check what can be checked beforehand, and sort the impressions into a folder that is there meanwhile.

        Raises
        ------
        AdvpriorError
            ``STO00x`` (`ranking.frame.preflight`); ``RNK010`` without an impression.
        """
        plan = load_time_plan(request.tables)
        preflight(request.repo, request.predictors, end=plan.end)
        rows = SortedRows.load(request.tables, plan, spill)
        store = open_store(request.repo)
        refs, keys = scalar_refs(store, request.services, request.repo)
        source = Source.open(request, plan, refs, keys, FeastJoins.open(store, list(refs), request))
        return cls(store, rows, source)

    def __iter__(self) -> Iterator[pa.Table]:
        start = 0
        for rows in self.rows.parts():
            part = PartMaker(self.source).make(rows, self.golden(start, start + len(rows.table)))
            self.add(part.features, part.sums)
            yield part.table
            start += len(rows.table)

    @property
    def on_spark(self) -> bool:
        """Whether the offline store is Spark: its workers make the parts (`ranking.frame.on_spark`)."""
        return bool(self.store.config.offline_store.type == SPARK)

    def golden(self, start: int, stop: int) -> Int:
        """Places among the rows from ``start`` to ``stop`` that the check for golden features looks at."""
        chosen: Int = self._golden[slice(*np.searchsorted(self._golden, [start, stop]))] - start
        return chosen

    def add(self, features: list[Feature], sums: Sums) -> None:
        """Note what the next part's columns are, and what it counted."""
        self._features = features
        self._sums.update(sums)

    def finish(self) -> tuple[list[checks.Finding], dict[str, Any]]:
        """Warnings and facts of the whole frame.

        Raises
        ------
        AdvpriorError
            ``RNK00x`` (`ranking.frame.checks`); ``STO006`` where a view was published anew meanwhile.
        """
        request, sums = self._request, self._sums
        _require_unchanged(request, self._versions)
        priors = {p: read_manifest(view_folder(request.repo, prior_view(p)))["facts"] for p in request.predictors}
        gaps, findings = self._gaps()
        findings = [
            checks.check_numbers_held(sums.too_large),
            checks.check_views_joined(views_in_no_service(self.store, self.source.refs), request.service),
            *(prior.check() for prior in self.source.priors.values()),
            *sums.tallies.findings(),
            *findings,
            *self._check_whole(priors),
        ]
        warnings = checks.enforce(findings, "the frame")
        existing = sums.existing
        return warnings, {
            **self._row_facts(),
            "predictors": list(request.predictors),
            "services": request.services,
            "features": features_to_json(self._features),
            # of impressions whose user existed: nobody could have a prior of the others
            "coverage": {p: round(1 - sums.missing[p] / existing, 6) if existing else 0.0 for p in request.predictors},
            "not_yet_existing": dict(sums.absent),
            "gaps": gaps,
            "views": self._versions,
            "own_sources": source_digests(self.store, self.source.refs),
            # what the report says of the data and of each prior's origin
            "data": read_manifest(request.tables)["facts"],
            "priors": priors,
            "late_events": late_events(request.tables, self._plan),
            "warnings": [finding.to_json() for finding in warnings],
        }

    def _gaps(self) -> tuple[dict[str, Any], list[checks.Finding | None]]:
        """Why impressions of users who existed lack a prior, where too many do."""
        sums, gaps = self._sums, dict[str, Any]()
        findings: list[checks.Finding | None] = []
        for predictor in self._request.predictors:
            arrays = (np.concatenate(of_parts) for of_parts in zip(*sums.lacking[predictor], strict=True))
            users, moments, joined, listed = arrays
            uses = Uses(users, moments, joined, listed, others=sums.existing - len(users))
            if gap := coverage_gap(self._request.repo, predictor, uses):
                gaps[predictor] = gap.to_json()
                findings.append(checks.check_prior_coverage(predictor, gap.share, gap.cause, gap.fix))
        return gaps, findings

    def _check_whole(self, priors: Mapping[str, Mapping[str, Any]]) -> list[checks.Finding | None]:
        """Checks of the frame as a whole: catalogs, splits, and features that all but know the label."""
        import pyarrow as pa

        # priors by advertiser and by advertiser × category have catalogs of their own, and are meant to
        catalogs: dict[str, dict[str, str]] = {}
        for name, facts in priors.items():
            if "catalog_version" in facts:
                catalogs.setdefault(str(facts.get("by")), {})[name] = str(facts["catalog_version"])
        label = self.rows.label
        of_golden = pa.concat_tables(self._sums.golden).unify_dictionaries().to_pandas()
        return [
            *(checks.check_one_catalog(versions) for versions in catalogs.values()),
            checks.check_splits_apart(self._split, as_datetimes(self.rows.moments)),
            checks.check_enough_positives(self._split, label),
            *checks.check_golden_features(of_golden, label[self._golden]),
        ]

    def _row_facts(self) -> dict[str, Any]:
        of_split = {name: self._split == name for name in SPLITS}
        return {
            "time_plan": self._plan.to_json(),
            "rows": {name: int(rows.sum()) for name, rows in of_split.items()},
            "positives": {name: int(self.rows.label[rows].sum()) for name, rows in of_split.items()},
            "rows_beyond_end": self.rows.beyond,
        }


def _require_unchanged(request: Request, versions: Mapping[str, str]) -> None:
    """``STO006``: no view was published anew since its version was noted."""
    for view, digest in request.versions().items():
        if digest != versions[view]:
            raise AdvpriorError(
                "STO006",
                "a view was published anew while the frame was being built",
                where=view,
                fix="run the same command again",
            )
