"""Ports for servers that start later.

A port that the system itself gives (``bind`` to 0) lies in the range that it gives to every connection, too: while a
server is starting, another test's client may take it, and a client that waits for that server may even connect to
itself. So ports here lie below that range.
"""

from __future__ import annotations

import contextlib
import random
import socket

#: Above what services are known by, below 32768, where Linux' range begins (others begin at 49152).
_FROM, _TO = 15_000, 32_000


def free_port(count: int = 1) -> int:
    """The first of so many ports of 127.0.0.1 in a row on which nothing listens."""
    choose = random.SystemRandom()  # tests beside each other may share a seed
    while True:
        first = choose.randrange(_FROM, _TO)
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
