"""A page to look at: one user, what is known of them, and the slates that both rankers would give.

Off unless asked for (``--page``). It shows what the service knows of a user, so it asks for the API key wherever
``/rank`` does: in the header ``X-API-Key``, or as the password of HTTP Basic with any name, which a browser can give.
Looking is not showing: nothing is logged as an exposure or counted as a ranked request.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from asyncio import get_running_loop
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from advprior.store.contract import PRIOR_VIEW_PREFIX, TABLE_FILE, USER_HISTORY_VIEW, USER_ID, USER_PROFILE_VIEW
from ranking.experiment.assignment import ServedArm
from ranking.frame.gather import HISTORY_VALUES
from ranking.frame.history import online_columns
from ranking.service.candidates import PREDICTED, TOWERS
from ranking.service.engine import Engine, Slate
from ranking.service.features import Prior, floats, history_catalog
from ranking.service.reader import Row, ViewRow

_WITH = ServedArm(name="with_priors", share=1, priors=True)
_WITHOUT = ServedArm(name="without_priors", share=1, priors=False)
_TOP, _CONTRIBUTIONS, _EXAMPLES = 10, 8, 40
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Where a candidate came from, where that is worth a word.
_SAID = {TOWERS: "retrieved by the towers", PREDICTED: "retrieved for its predicted advertiser"}
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
        guards = [] if key is None else [Depends(_key_or_password(key))]

        @app.get("/", include_in_schema=False, dependencies=guards)
        async def look(
            user: Annotated[str, Query(max_length=256)] = "", slots: Annotated[int, Query(ge=1, le=20)] = 10
        ) -> Response:
            text = await get_running_loop().run_in_executor(self._pool, self.render, user.strip(), slots)
            return Response(text, media_type="text/html; charset=utf-8", headers=_HEADERS)

    def render(self, user: str, slots: int = 10) -> str:
        """The page of a user; without one, a form to choose one."""
        found = self._about(user, slots) if user else None
        return self._template.render(user=user, slots=slots, examples=self._examples(), about=found)

    def _examples(self) -> list[str]:
        """A few users of the published profiles; none when they cannot be read."""
        try:
            with pq.ParquetFile(self._profiles) as file:
                batch = next(file.iter_batches(batch_size=4096, columns=[USER_ID]), None)
        except (OSError, pa.ArrowInvalid, KeyError):
            return []
        return [] if batch is None else [str(u) for u in batch.column(0).unique().to_pylist()[:_EXAMPLES]]

    def _about(self, user: str, slots: int) -> dict[str, Any]:
        engine = self._engine
        found = engine.look_up(user)  # once: both slates and what is shown of the user are of the same rows
        rows = found.rows
        both = [engine.rank(user, slots, explain=True, arm=arm, found=found) for arm in (_WITH, _WITHOUT)]
        first = both[0]
        places = [{ad: i for i, (ad, _) in enumerate(slate.ads)} for slate in both]
        return {
            "known": first.user_known,
            "arm": engine.experiment.arm_of(user).name,
            "experiment": engine.experiment.name,
            "now": _text_of(engine.clock.now_us()),
            "profile": _profile(rows.get(USER_PROFILE_VIEW)),
            "history": _history(engine, rows.get(USER_HISTORY_VIEW)),
            "prior": None if first.prior is None else _prior(first.prior, engine.clock.now_us()),
            "slates": [
                _slate("With priors", first, places[1]),
                _slate("Without priors", both[1], places[0]),
            ],
        }


def _key_or_password(key: str) -> Any:
    """Asks for the API key in the header, or as HTTP Basic's password; both compared in constant time."""

    def check(request: Request) -> None:
        given = request.headers.get("x-api-key", "")
        kind, _, packed = request.headers.get("authorization", "").partition(" ")
        if not given and kind.lower() == "basic":
            try:
                given = base64.b64decode(packed, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                given = ""
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), key.encode()):
            asks = {"WWW-Authenticate": 'Basic realm="advprior: any name, the API key as password", charset="UTF-8"'}
            raise HTTPException(401, "no API key, or another one", headers=asks)

    return check


def _text_of(us: int) -> str:
    return f"{_EPOCH + timedelta(microseconds=us):%Y-%m-%d %H:%M} UTC"


def _profile(row: Row) -> list[tuple[str, str]]:
    """Profile fields that are there."""
    if not isinstance(row, ViewRow):
        return []
    found = []
    for name in sorted(row.values):
        number = row.text(name) if row.text(name) is not None else row.number(name)
        if number is not None and name.startswith("profile_"):
            words = name.removeprefix("profile_").replace("_", " ")
            found.append((words, number if isinstance(number, str) else f"{number:g}"))
    return found


def _history(engine: Engine, row: Row) -> dict[str, Any] | None:
    """The advertisers and categories that a user bought most from, and when; None when nothing is known."""
    if not isinstance(row, ViewRow) or (catalog := history_catalog(row, engine.catalogs)) is None:
        return None
    levels = []
    for level, names in (("advertiser", catalog.advertisers), ("category", catalog.categories)):
        named = {int(i): name for i, name in zip(catalog.ids[level], names, strict=True) if name is not None}
        ids_name, values_name = online_columns(level)
        ids, values = row.values.get(ids_name), row.values.get(values_name)
        rows: list[dict[str, Any]] = []
        if ids is not None and values is not None:
            places = list(ids.int32_list_val.val)
            numbers = floats(values.float_list_val).reshape(len(places), len(HISTORY_VALUES))
            for i in np.argsort(-numbers[:, 3], kind="stable").tolist():
                if places[i] in named and len(rows) < _TOP:
                    rows.append({"name": named[places[i]], "counts": [f"{v:g}" for v in numbers[i, :4]]})
        levels.append({"level": level, "rows": rows})
    return {"since": _text_of(row.time_us("snapshot") or row.available_us), "levels": levels}


def _prior(prior: Prior, now_us: int) -> dict[str, Any]:
    """The likeliest advertisers, and how that compares with the mean user of the snapshot."""
    probability = np.exp(prior.log_probs.astype(np.float64))
    order = np.argsort(-probability, kind="stable")[:_TOP].tolist()
    top = float(probability[order[0]])
    return {
        "predictor": prior.view.removeprefix(PRIOR_VIEW_PREFIX),
        "age": f"{prior.age_days(now_us):.1f}",
        "advertisers": len(prior.advertisers),
        "rows": [
            {
                "name": prior.advertisers[i],
                "percent": f"{100 * probability[i]:.2f}",
                "width": f"{100 * probability[i] / top:.1f}",
                "times": f"{probability[i] / prior.means[i]:.1f}" if prior.means[i] > 0 else "–",
            }
            for i in order
        ],
    }


def _slate(title: str, slate: Slate, elsewhere: dict[str, int]) -> dict[str, Any]:
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
                "origin": _SAID.get(slate.origins[i], ""),
                "ad": ad,
                "advertiser": advertiser or "–",
                "percent": f"{100 * score:.2f}",
                "moved": "new"
                if other is None
                else "="
                if other == i
                else f"{'▲' if other > i else '▼'}{abs(other - i)}",
                "said": "not in the other slate" if other is None else f"place {other + 1} in the other slate",
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
