"""Every error of the service in one form: the request's id, and problems with code, what, where, actual, expected."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

log = logging.getLogger("advprior.service")
_BRANCH = re.compile(r"function-|constrained-|Candidate$")
_REPEATED = 200  # characters of a wrong value that an error repeats
_LISTED = 20  # problems of one request


def error_response(
    request: Request, status: int, problems: list[dict[str, Any]], headers: Mapping[str, str] | None = None
) -> Response:
    """The body that `ranking.service.messages.ErrorResponse` describes."""
    body = {"request_id": request.state.request_id, "problems": problems}
    return Response(json.dumps(body), status, headers, "application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Answer every kind of failure in the one form."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(request, 422, [_invalid(one) for one in error.errors()[:_LISTED]])

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        problem = {"code": f"SRV{error.status_code}", "what": str(error.detail)}
        return error_response(request, error.status_code, [problem], error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error, extra={"request_id": request.state.request_id})
        return error_response(request, 500, [{"code": "SRV500", "what": "the service failed"}])


def _invalid(error: Mapping[str, Any]) -> dict[str, Any]:
    """One problem of a request that pydantic refused."""
    return {
        "code": "SRV422",
        "what": "the request is not valid",
        # pydantic names the branch of a union, too, which is no place in the body
        "where": ".".join(str(part) for part in error["loc"] if not _BRANCH.match(str(part))),
        # a missing field's input is the whole body
        "actual": "nothing" if error["type"] == "missing" else repr(error.get("input"))[:_REPEATED],
        "expected": error["msg"],
    }
