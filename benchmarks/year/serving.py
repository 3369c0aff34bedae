"""What the service and Redis say of themselves."""

from __future__ import annotations

import http.client
import os
import re
import socket
import time
from pathlib import Path


def metrics_of(port: int) -> dict[str, float]:
    """The service's metrics by name and labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^(advprior_\S+) (\S+)$", text, re.MULTILINE)}


def until_ads_are_read(port: int, seconds: float = 600.0) -> None:
    """Wait until the service has read its ads anew: what is asked now is ranked with what was just put online."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        time.sleep(0.2)
        asked = time.monotonic()
        if metrics_of(port).get("advprior_ads_age_seconds", float("inf")) < asked - begin - 0.05:
            return
    raise SystemExit("the service reads no ads any more")


def cpu_seconds_of(pid: int) -> float:
    """User and system time of a process and its threads so far, on Linux; not a number elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def used_memory_mb(port: int) -> float:
    """Of a Redis."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"INFO memory\r\n")
        text = b""
        while b"used_memory:" not in text or not text.endswith(b"\r\n"):
            text += connection.recv(65536)
    used = re.search(rb"used_memory:(\d+)", text)
    return int(used[1]) / 1e6 if used else float("nan")
