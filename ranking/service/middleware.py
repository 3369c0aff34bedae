"""Around every request: an id, a limit on the body, a line in the log, a count. Plain ASGI, so that it costs little."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fastapi import HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException

from ranking.service.lanes import no_room
from ranking.service.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("advprior.access")
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
#: Paths that are counted by name; others are counted together, so that a scanner cannot grow the metrics.
_PATHS = frozenset({"/", "/rank", "/health", "/ready", "/metrics", "/openapi.json"})


class _TooLarge(HTTPException):
    """FastAPI hands its own kind of exception on from where it reads the body."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body is too large: at most {limit} bytes", headers={"Connection": "close"})


class Around:
    """Request ids, body limit, access log and request counts.

    Parameters
    ----------
    app : the application
    max_body : int
        Bytes; more is answered 413, whether or not the request said so beforehand.
    refuses : callable
        Whether a request, by its scope and headers, has no room: it is answered 429 before its body is looked at, so
        that refusing costs next to nothing of what ranking needs.
    """

    def __init__(
        self, app: App, *, max_body: int, metrics: Metrics, refuses: Callable[[Scope, Mapping[bytes, bytes]], bool]
    ) -> None:
        self._app, self._max_body, self._metrics, self._refuses = app, max_body, metrics, refuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status, size, begun = 500, 0, False

        async def limited() -> MutableMapping[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body:
                raise _TooLarge(self._max_body)
            return message

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self._max_body:
                raise _TooLarge(self._max_body)
            if self._refuses(scope, headers):
                await _refuse(answer, request_id, no_room())
            else:
                await self._app(scope, limited, answer)
        except _TooLarge as error:
            if begun:
                raise
            await _refuse(answer, request_id, error)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            if path == "/rank" or status >= 400:
                about = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
                about["ms"] = round((time.perf_counter() - begin) * 1e3, 3)
                level = (
                    logging.DEBUG if status == 429 else logging.INFO
                )  # counted; a line each would cost more than they
                log.log(level, "request", extra=about | state.get("about", {}))


async def _refuse(send: Send, request_id: str, error: StarletteHTTPException) -> None:
    """An answer in the form of every other error."""
    problem = {"code": f"SRV{error.status_code}", "what": error.detail}
    body = json.dumps({"request_id": request_id, "problems": [problem]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
    await send({"type": "http.response.start", "status": error.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
