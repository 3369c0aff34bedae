"""Sends requests to the service, in a process of its own: lines of JSON in, lines of JSON out.

A line in is ``{"port", "seconds", "requests": [{"time", "body"}, …]}``; they are sent one after the other over about so
many seconds. The line out is ``{"answers": [{"status", "answer" or "error", "ms"}, …]}`` in their order.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from typing import Any

_HEADERS = {"content-type": "application/json"}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"answers": _send(asked["port"], asked["seconds"], asked["requests"])}), flush=True)


def _send(port: int, seconds: float, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begin, answers = time.monotonic(), []
    for i, request in enumerate(requests):
        time.sleep(max(0.0, begin + seconds * i / len(requests) - time.monotonic()))
        sent = time.perf_counter()
        try:
            headers = {**_HEADERS, "X-Advprior-Time": request["time"]}
            connection.request("POST", "/rank", json.dumps(request["body"]), headers)
            response = connection.getresponse()
            answer = {"status": response.status, "answer": json.loads(response.read())}
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer = {"status": 0, "answer": repr(error)}
            connection.close()
        answers.append({**answer, "ms": 1e3 * (time.perf_counter() - sent)})
    return answers


if __name__ == "__main__":
    main()
