"""Errors of the server, as JSON in OpenAI's form: argument, rule, value and remedy in one line."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

LONGEST_VALUE = 80  # characters of a value that a message repeats
SERVER_ERROR = 500
RETRY_SECONDS = {"Retry-After": "1"}


class ApiError(Exception):
    """Request that is refused.

    Args:
        status: the HTTP status.
        message: one line for the client.
        param: name of the argument that it is about.
        code: short name of the error for programs.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        self.param, self.code = param, code

    def response(self) -> JSONResponse:
        """Return the answer in the form of OpenAI's errors."""
        kind = "server_error" if self.status >= SERVER_ERROR else "invalid_request_error"
        error = {
            "message": _sendable(self.message),
            "type": kind,
            "param": self.param and _sendable(self.param),
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.status, self.headers)


def answer_errors(app: FastAPI) -> None:
    """Let `app` answer each kind of error in one form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        param, message = validation_message(error.errors()[0])
        return ApiError(400, message, param=param).response()

    @app.exception_handler(HTTPException)
    async def unanswerable(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(
            error.status_code, _http_message(request, error), headers=error.headers
        ).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        del error  # uvicorn logs it
        return ApiError(SERVER_ERROR, "the server failed: its log says why").response()


def validation_message(error: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the argument and the message of one of pydantic's errors."""
    param = ".".join(str(part) for part in error["loc"][1:]) or None
    kind, value, name = error["type"], brief(error["input"]), param or "body"
    if kind == "json_invalid":
        reason, place = error["ctx"]["error"], error["loc"][-1]
        return None, f"body must be JSON, got an error at character {place}: {reason}"
    if kind == "missing":
        return param, f"{name} must be given, got none"
    if kind == "extra_forbidden":
        return param, f"{name} must be left out, got {value}: this route does not know it"
    if kind == "value_error":
        return param, f"{name} {error['ctx']['error']}"
    if param is None:
        return (
            None,
            f"body must be a JSON object sent as Content-Type: application/json, got {value}",
        )
    rule = error["msg"].removeprefix("Input should ").removeprefix("List should ")
    return param, f"{name} must {rule}, got {value}"


def brief(value: object) -> str:
    """Return a value for a message as JSON, cut to a few words."""
    text = " ".join(json.dumps(value, ensure_ascii=False, default=repr).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _sendable(text: str) -> str:
    """Return a text with halves of surrogates, which UTF-8 does not have, written out."""
    return text.encode(errors="backslashreplace").decode()


def _http_message(request: Request, error: HTTPException) -> str:
    """Return the message about a request that no route has answered."""
    cause = error.__cause__
    if isinstance(cause, UnicodeDecodeError):
        byte, place = cause.object[cause.start], cause.start + 1
        return f"body must be UTF-8, got the byte 0x{byte:02x} at position {place}: convert it"
    if cause is not None:
        return f"body must be JSON, got: {brief(str(cause) or type(cause).__name__)}"
    if error.status_code == 404:
        return f"path must be one of the server's, got {brief(request.url.path)}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another one")
        return f"method must be {allowed} for {request.url.path}, got {request.method}"
    return str(error.detail)
