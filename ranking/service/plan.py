"""Where each feature of a ranker comes from online: read, worked out from a row, or given with the request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from advprior.store.arrays import Int
from advprior.store.contract import prior_view
from advprior.store.errors import AdvpriorError
from advprior.store.features import CLOCK_SOURCE, REQUEST_SOURCE
from ranking.frame.columns import FLOAT32_MAX, clock_columns, finite
from ranking.frame.streams import STREAMS, Stream
from ranking.models.ranker import Ranker
from ranking.service.ads import AdTable
from ranking.service.priors import DERIVED
from ranking.service.reader import OnlineReader
from ranking.service.rows import Matrix, ServedView
from ranking.service.views import derived_columns

_CLOCK = frozenset(clock_columns(np.zeros(1, dtype="datetime64[us]")))


class Plan:
    """Where each of a ranker's features comes from; made once a ranker.

    Exactly the features of the ranker's manifest are served. What else its Feast service offers is not looked at.

    Parameters
    ----------
    ranker : Ranker
    reader : OnlineReader
        Which has read the definitions of the ranker's service.

    Attributes
    ----------
    features : list of str
        In the ranker's order.
    predictors : list of str
        Whose priors it reads.
    user : list of (place, view, feature, column)
        What is read off a user's rows.
    ad_columns, ad_places : list of str, int array
        What is read off the ads' rows, and where it stands.
    history : list of (lists, places, at)
        What is worked out from the user's own counts: lists of one width, the places of their features, and where each
        stands among the lists' values.
    prior : dict of str to list of (place, name)
        What is worked out from priors, by predictor.
    clock, context : list of (place, column)
        What the moment of the request says, and what the request itself brings.
    reference : dict of str to float
        Context of all candidates where the request says nothing, such as the first position.

    Raises
    ------
    AdvpriorError
        ``SRV003`` when the ranker has a feature that its service does not give, or not of that kind.
    """

    def __init__(self, ranker: Ranker, reader: OnlineReader) -> None:
        assert ranker.encoder is not None
        self.ranker = ranker
        self.features = ranker.names
        self.categories = ranker.encoder.categories
        self._codes = {
            name: {text: float(i) for i, text in enumerate(texts)} for name, texts in self.categories.items()
        }
        self.views = reader.views
        place = {name: i for i, name in enumerate(self.features)}
        views = [reader.views[name] for name in reader.views_of.get(ranker.service, [])]
        supplied = {
            column: (view, feature) for view in views for feature, column in view.columns.items() if column in place
        }
        self._check(views, {column: feature in view.text for column, (view, feature) in supplied.items()})
        self.user = [(place[c], view.name, f, c) for c, (view, f) in supplied.items() if view.name in reader.user_views]
        self.ad_columns = [c for c, (view, _) in supplied.items() if view.name in reader.ad_views]
        self.ad_places = np.array([place[c] for c in self.ad_columns], dtype=np.intp)
        self.history = _history_places(place)
        self.predictors = sorted({f.predictor for f in ranker.features if f.predictor is not None})
        self.prior = {
            predictor: [
                (place[f"{prior_view(predictor)}_{name}"], name)
                for name in DERIVED
                if f"{prior_view(predictor)}_{name}" in place
            ]
            for predictor in self.predictors
        }
        self.clock = [(place[f.name], f.name) for f in ranker.features if f.source == CLOCK_SOURCE]
        self.context = [(place[f.name], f.name) for f in ranker.features if f.source == REQUEST_SOURCE]
        stated: Mapping[str, float] = ranker.facts.get("reference", {})
        self.reference = {name: float(stated[name]) for _, name in self.context if name in stated}

    def _check(self, views: Iterable[ServedView], text_of: Mapping[str, bool]) -> None:
        """Refuse a ranker whose features are not all served, or not of the kind that it was trained on.

        Parameters
        ----------
        views : of the ranker's service
        text_of : columns that are read off the views, and whether each is text
        """
        derived = {column for view in views for column in derived_columns(view)}
        unread = (REQUEST_SOURCE, CLOCK_SOURCE)
        lacking = [
            f.name for f in self.ranker.features if f.source not in unread and f.name not in text_of.keys() | derived
        ]
        lacking += [f.name for f in self.ranker.features if f.source == CLOCK_SOURCE and f.name not in _CLOCK]
        changed = sorted(name for name, text in text_of.items() if text != (name in self._codes))
        if lacking or changed:
            problems = [f"not served: {', '.join(lacking[:5])}"] if lacking else []
            problems += [f"text in one, a number in the other: {', '.join(changed[:5])}"] if changed else []
            raise AdvpriorError(
                "SRV003",
                "the feature service differs from what the ranker was trained on",
                where=f"service {self.ranker.service}",
                actual="; ".join(problems),
                expected=f"the {len(self.features)} features of the ranker's manifest",
                fix="feast apply, build the frame again, then: advprior rank train --frame FRAME --service "
                f"{self.ranker.service} --out RANKER",
            )

    def encode(self, column: str, value: Any) -> float:
        """One value as the ranker takes it: NaN for what is missing or a category that training did not have."""
        if value is None:
            return float("nan")
        codes = self._codes.get(column)
        if codes is not None:
            return codes.get(str(value), float("nan"))
        try:
            number = float(value)
            return number if abs(number) <= FLOAT32_MAX else float("nan")
        except (TypeError, ValueError):
            return float("nan")

    def ads(self, table: AdTable) -> Matrix:
        """The ads' own features, encoded: float32 [ads + 1, ad columns]; worked out once a table."""

        def encoded() -> Matrix:
            out = np.empty((len(table.ids) + 1, len(self.ad_columns)), dtype=np.float32)
            for i, column in enumerate(self.ad_columns):
                values = table.values.get(column)  # noqa: PD011
                if values is None:  # of a reader that no longer reads it: these ads are for the next ranker
                    out[:, i] = np.nan
                    continue
                if values.dtype == object:  # few texts, many ads
                    codes, texts = pd.factorize(values, use_na_sentinel=False)
                    values = np.array([self.encode(column, None if pd.isna(t) else t) for t in texts])[codes]
                out[:, i] = finite(values)
            return out

        matrix: Matrix = table.cached(self, encoded)
        return matrix

    def context_kinds(self) -> Mapping[str, bool]:
        """Context features that a request may bring, and whether each is text."""
        return {name: name in self._codes for _, name in self.context}


def _history_places(place: Mapping[str, int]) -> list[tuple[tuple[tuple[Stream, str], ...], Int, Int]]:
    """Streams and levels that a ranker reads, by their width, with the places of their features."""
    by_width: dict[int, list[tuple[Stream, str]]] = {}
    for stream in STREAMS:
        for level in stream.levels:
            if not place.keys().isdisjoint(stream.features(level)):
                by_width.setdefault(len(stream.quantities), []).append((stream, level))
    groups = []
    for lists in by_width.values():
        names = [name for stream, level in lists for name in stream.features(level)]
        at = [i for i, name in enumerate(names) if name in place]
        groups.append((tuple(lists), np.array([place[names[i]] for i in at]), np.array(at)))
    return groups
