"""A page to look at: one user, their profile, history and prior, and the slates that both rankers would give.

Off unless it is turned on (``--page``). It shows what the service holds of a user, so it asks for the API key wherever
``/rank`` does: in the header ``X-API-Key``, or as the password of HTTP Basic with any name, which a browser can give.
Looking is not showing: nothing is logged as an exposure or counted as a ranked request.
"""

from __future__ import annotations

from asyncio import get_running_loop
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import Depends, FastAPI, Query, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from advprior.store.columns import LONGEST
from advprior.store.contract import (
    PRIOR_VIEW_PREFIX,
    PROFILE_PREFIX,
    TABLE_FILE,
    USER_HISTORY_VIEW,
    USER_ID,
    USER_PROFILE_VIEW,
)
from ranking.experiment.assignment import ServedArm
from ranking.frame.streams import EVENTS
from ranking.service.candidates import PREDICTED, TOWERS
from ranking.service.engine import Engine
from ranking.service.histories import history_catalog, history_fits
from ranking.service.keys import key_or_password
from ranking.service.names import Label, Names
from ranking.service.priors import Prior
from ranking.service.rows import Row, ViewRow, floats
from ranking.service.slate import Query as RankQuery
from ranking.service.slate import Slate

_WITH = ServedArm(name="with_priors", share=1, priors=True)
_WITHOUT = ServedArm(name="without_priors", share=1, priors=False)
_TOP, _CONTRIBUTIONS, _EXAMPLES = 10, 8, 40
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Where a candidate came from, where that is worth a word.
_ORIGIN_TEXTS = {TOWERS: "retrieved by the towers", PREDICTED: "retrieved for its predicted advertiser"}
#: No script, nothing from elsewhere, in nobody's frame; not kept by anything between, for it is about a person.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page:
    """Renders the page, in a thread of its own: explanations take long and must not hold up requests.

    Parameters
    ----------
    engine : Engine
    repo : Path
        Feature repository, whose published profiles name a few users to begin with.
    """

    def __init__(self, engine: Engine, repo: Path) -> None:
        self._engine = engine
        self._names = Names(engine.resources.catalogs)
        self._profiles = Path(repo) / "data" / USER_PROFILE_VIEW / TABLE_FILE
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="advprior-page")
        self._template = Environment(
            loader=PackageLoader("ranking"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        ).get_template("user.html.j2")

    def close(self) -> None:
        """End its thread."""
        self._pool.shutdown()

    def add_to(self, app: FastAPI, key: str | None) -> None:
        """Serve it at ``/``; it is for people and stays out of the OpenAPI."""
        guards = [] if key is None else [Depends(key_or_password(key))]

        @app.get("/", include_in_schema=False, dependencies=guards)
        async def look(
            user: Annotated[str, Query(max_length=LONGEST)] = "", slots: Annotated[int, Query(ge=1, le=20)] = 10
        ) -> Response:
            text = await get_running_loop().run_in_executor(self._pool, self.render, user.strip(), slots)
            return Response(text, media_type="text/html; charset=utf-8", headers=_HEADERS)

    def render(self, user: str, slots: int = 10) -> str:
        """The page of a user; without one, a form to choose one."""
        about = self._about(user, slots) if user else None
        return self._template.render(user=user, slots=slots, examples=self._examples(), about=about)

    def _examples(self) -> list[str]:
        """A few users of the published profiles; none when they cannot be read."""
        try:
            with pq.ParquetFile(self._profiles) as file:
                batch = next(file.iter_batches(batch_size=4096, columns=[USER_ID]), None)
        except (OSError, pa.ArrowInvalid, KeyError):
            return []
        return [] if batch is None else [str(u) for u in batch.column(0).unique().to_pylist()[:_EXAMPLES]]

    def _about(self, user: str, slots: int) -> dict[str, Any]:
        engine, names = self._engine, self._names
        stored = engine.look_up(user)  # once: both slates and what is shown of the user are of the same rows
        with_priors, without = (
            engine.rank(RankQuery(user, slots, explain=True, arm=arm, user_rows=stored)) for arm in (_WITH, _WITHOUT)
        )
        places = [{ad: i for i, (ad, _) in enumerate(slate.ads)} for slate in (with_priors, without)]
        return {
            "in_store": with_priors.user_known,
            "arm": engine.experiment.arm_of(user).name,
            "experiment": engine.experiment.name,
            "now": _text_of(engine.clock.now_us()),
            "profile": _profile(stored.rows.get(USER_PROFILE_VIEW)),
            "history": _history(engine, stored.rows.get(USER_HISTORY_VIEW), names),
            "prior": None if with_priors.prior is None else _prior(with_priors.prior, engine.clock.now_us(), names),
            "slates": [
                _slate("With priors", with_priors, places[1], names),
                _slate("Without priors", without, places[0], names),
            ],
        }


def _text_of(us: int) -> str:
    return f"{_EPOCH + timedelta(microseconds=us):%Y-%m-%d %H:%M} UTC"


def _profile(row: Row) -> list[tuple[str, str]]:
    """Profile fields of the row: label and value."""
    if not isinstance(row, ViewRow):
        return []
    fields = []
    for name in sorted(row.values):
        value = row.text(name) if row.text(name) is not None else row.number(name)
        if value is not None and name.startswith(PROFILE_PREFIX):
            label = name.removeprefix(PROFILE_PREFIX).replace("_", " ")
            fields.append((label, value if isinstance(value, str) else f"{value:g}"))
    return fields


def _history(engine: Engine, row: Row, names: Names) -> dict[str, Any] | None:
    """Advertisers and categories that a user had most events with, and when; None without a row that can be read."""
    if not isinstance(row, ViewRow) or not history_fits(row):
        return None
    if (catalog := history_catalog(row, engine.resources.catalogs)) is None:
        return None
    levels = []
    for level, of_ads in (("advertiser", catalog.advertisers), ("category", catalog.categories)):
        id_of = {int(i): name for i, name in zip(catalog.ids[level], of_ads, strict=True) if name is not None}
        ids_name, values_name = EVENTS.online(level)
        ids, values = row.values.get(ids_name), row.values.get(values_name)
        rows: list[dict[str, Any]] = []
        if ids is not None and values is not None:
            places = list(ids.int32_list_val.val)
            numbers = floats(values.float_list_val).reshape(len(places), len(EVENTS.quantities))
            for i in np.argsort(-numbers[:, 3], kind="stable").tolist():
                if places[i] in id_of and len(rows) < _TOP:
                    label = names.label(id_of[places[i]]) if level == "advertiser" else Label(id_of[places[i]])
                    rows.append({"label": label, "counts": [f"{v:g}" for v in numbers[i, :4]]})
        levels.append({"level": level, "rows": rows})
    return {"since": _text_of(row.time_us("snapshot") or row.available_us), "levels": levels}


def _prior(prior: Prior, now_us: int, names: Names) -> dict[str, Any]:
    """The likeliest advertisers, and how that compares with the mean user of the snapshot."""
    probability = np.exp(prior.log_probs.astype(np.float64))
    order = np.argsort(-probability, kind="stable")[:_TOP].tolist()
    top = float(probability[order[0]])
    return {
        "predictor": prior.predictor,
        "age": f"{prior.age_days(now_us):.1f}",
        "advertisers": len(prior.advertisers),
        "rows": [
            {
                "label": names.label(prior.advertisers[i]),
                "percent": f"{100 * probability[i]:.2f}",
                "width": f"{100 * probability[i] / top:.1f}",
                "times": f"{probability[i] / prior.means[i]:.1f}" if prior.means[i] > 0 else "–",
            }
            for i in order
        ],
    }


def _moved(place: int, other: int | None) -> str:
    """How an ad's place differs from its place in the other slate.

    >>> _moved(0, None), _moved(2, 2), _moved(0, 3), _moved(3, 0)
    ('new', '=', '▲3', '▼3')
    """
    if other is None:
        return "new"
    return "=" if other == place else f"{'▲' if other > place else '▼'}{abs(other - place)}"


def _slate(title: str, slate: Slate, elsewhere: dict[str, int], names: Names) -> dict[str, Any]:
    """One slate: each ad with its place in the other one, and what moved its score most."""
    slots = []
    explained: list[dict[str, Any]] = slate.contributions or [{}] * len(slate.ads)
    for i, ((ad, advertiser), score, why) in enumerate(zip(slate.ads, slate.scores, explained, strict=True)):
        features = list(why.get("features", {}).items())
        shown = features[:_CONTRIBUTIONS]
        largest = max((abs(value) for _, value in shown), default=1.0)
        other = elsewhere.get(ad)
        slots.append(
            {
                "place": i + 1,
                "origin": _ORIGIN_TEXTS.get(slate.origins[i], ""),
                "ad": ad,
                "advertiser": Label("–") if advertiser is None else names.label(advertiser),
                "percent": f"{100 * score:.2f}",
                "moved": _moved(i, other),
                "elsewhere": "not in the other slate" if other is None else f"place {other + 1} in the other slate",
                "prior_share": f"{100 * why.get('prior_share', 0.0):.0f}",
                "base": f"{why.get('base', 0.0):+.2f}",
                "rest": len(features) - len(shown),
                "rest_sum": f"{sum(value for _, value in features[len(shown) :]):+.2f}",
                "features": [
                    {
                        "name": name,
                        "value": f"{value:+.2f}",
                        "width": f"{100 * abs(value) / largest:.0f}",
                        "tone": "up" if value > 0 else "down",
                        "prior": name.startswith(PRIOR_VIEW_PREFIX),
                    }
                    for name, value in shown
                ],
            }
        )
    return {
        "title": title,
        "service": slate.ranker.service,
        "ranker": slate.ranker.digest[:12],
        "slots": slots,
        "degraded": slate.degraded,
        "candidates": slate.candidates,
        "ms": f"{1e3 * slate.timings['total']:.0f}",
    }
