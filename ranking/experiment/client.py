"""A few connections to a running service: what it is, and many requests, bounded and in order.

At a rate, a request's time counts from when it was due: a service that stalls cannot hide it by being asked less.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from advprior.store.errors import AdvpriorError

#: As of when a request is to be ranked, where the service runs with ``--clock request``.
TIME_HEADER = "X-Advprior-Time"
SERVE_FIX = "advprior rank serve --clock request … on this machine, then --url http://127.0.0.1:8000"


@dataclass(frozen=True)
class Ask:
    """One request: body and headers, and when it is due, seconds after the first."""

    body: bytes
    headers: dict[str, str]
    due_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What came back. ``status`` is 0 where nothing did; ``seconds`` as of when it was due."""

    status: int
    body: Any
    seconds: float


class Service:
    """A ranking service at an address.

    Parameters
    ----------
    url : str
        ``http://host:port``, with a path where it is mounted below one.
    key : str, optional
        API key.
    timeout_s : float
        For one answer.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise AdvpriorError(
                "CFG001",
                "no address of a service",
                where="--url",
                actual=url.rpartition("@")[2],
                expected="http://127.0.0.1:8000, without a name or password",
            )
        self.url = url
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._timeout_s = timeout_s
        # bytes: http.client would send text as Latin-1 or refuse it
        self._headers: dict[str, str | bytes] = {"content-type": "application/json"}
        if key:
            self._headers["x-api-key"] = key.encode()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a page.

        Raises
        ------
        AdvpriorError
            ``RNK042`` when nothing that speaks JSON answers there.
        """
        connection = self._connect()
        try:
            connection.request("GET", self._path + path, headers=self._headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AdvpriorError(
                "RNK042",
                "no ranking service answers",
                where=self.url + path,
                actual=repr(error)[:200],
                expected="advprior rank serve",
                fix=SERVE_FIX,
            ) from error
        finally:
            connection.close()

    def ask(self, asks: Sequence[Ask], *, connections: int, paced: bool, seconds: float, bar: Any) -> list[Answer]:
        """Send requests to ``/rank`` in their order, so many at a time at most.

        Parameters
        ----------
        paced : bool
            Keep to the requests' own due times.
        seconds : float
            Stop sending after it.
        bar : progress bar

        Returns
        -------
        list of Answer
            Of the first requests, as many as were sent.
        """
        answers: list[Answer | None] = [None] * len(asks)
        lock, at, stop = threading.Lock(), iter(range(len(asks))), threading.Event()
        begin = time.perf_counter()

        def work() -> None:
            connection = self._connect()
            while not stop.is_set():
                with lock:
                    i = next(at, len(asks))
                due = begin + asks[i].due_s if paced and i < len(asks) else time.perf_counter()
                if i >= len(asks) or due - begin >= seconds:
                    break
                if stop.wait(max(0.0, due - time.perf_counter())):
                    break
                answers[i] = self._one(connection, asks[i], due if paced else time.perf_counter())
                bar.update()
            connection.close()

        threads = [threading.Thread(target=work, name=f"advprior-replay-{n}", daemon=True) for n in range(connections)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            stop.set()  # an interrupt ends them, too
        sent = next((i for i, answer in enumerate(answers) if answer is None), len(answers))
        return [answer for answer in answers[:sent] if answer is not None]

    def _one(self, connection: http.client.HTTPConnection, ask: Ask, due: float) -> Answer:
        try:
            connection.request("POST", f"{self._path}/rank", ask.body, {**self._headers, **ask.headers})
            response = connection.getresponse()
            data = response.read()
            status, body = response.status, json.loads(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()  # it opens anew by itself
            status, body = 0, {"error": type(error).__name__}
        return Answer(status, body, time.perf_counter() - due)

    def _connect(self) -> http.client.HTTPConnection:
        return self._kind(self._host, self._port, timeout=self._timeout_s)
