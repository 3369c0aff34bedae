"""The API key: asked for in the environment at the start, and with every guarded request.

Keys are compared as bytes, in constant time, so that answers do not tell how much of a guess was right. HTTP says
nothing of a header's encoding: a key beyond ASCII is expected in UTF-8, as curl and browsers send it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException, Request
from fastapi.security import APIKeyHeader
from starlette.requests import HTTPConnection

from advprior.store.errors import AdvpriorError
from ranking.service.settings import KEY_VARIABLE, ServeSettings

KEY_HEADER = "X-API-Key"
_REFUSED = "no API key, or another one"


def required_key(settings: ServeSettings) -> str | None:
    """The API key, None where the settings ask for none.

    Raises
    ------
    AdvpriorError
        ``SRV005`` when one is asked for and not given.
    """
    if not settings.api_key:
        return None
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise AdvpriorError(
            "SRV005",
            "the service needs an API key",
            where=KEY_VARIABLE,
            actual="nothing",
            expected="a secret in that environment variable",
            fix="set it, or serve openly with --no-api-key",
        )
    return key


def key_in(headers: Mapping[bytes, bytes], key: str) -> bool:
    """Whether headers as ASGI gives them bring the key."""
    return hmac.compare_digest(headers.get(KEY_HEADER.lower().encode(), b""), key.encode())


def _header_bytes(request: HTTPConnection, name: str) -> bytes:
    """A header as it was sent: Starlette decodes headers as Latin-1, whatever they are in."""
    return request.headers.get(name, "").encode("latin-1")


class KeyHeader(APIKeyHeader):
    """Asks for the API key in ``X-API-Key``, and says so in the OpenAPI."""

    def __init__(self, key: str) -> None:
        super().__init__(name=KEY_HEADER, auto_error=False)
        self._key = key.encode()

    async def __call__(self, request: HTTPConnection) -> str | None:
        if not hmac.compare_digest(_header_bytes(request, KEY_HEADER), self._key):
            raise HTTPException(401, _REFUSED, headers={"WWW-Authenticate": "ApiKey"})
        return None


def key_or_password(key: str) -> Any:
    """A guard that takes the API key in the header, or as HTTP Basic's password with any name."""

    def check(request: Request) -> None:
        given = _header_bytes(request, KEY_HEADER)
        kind, _, packed = request.headers.get("authorization", "").partition(" ")
        if not given and kind.lower() == "basic":
            try:
                given = base64.b64decode(packed, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                given = b""
        if not hmac.compare_digest(given, key.encode()):
            challenge = 'Basic realm="advprior: any name, the API key as password", charset="UTF-8"'
            raise HTTPException(401, _REFUSED, headers={"WWW-Authenticate": challenge})

    return check
