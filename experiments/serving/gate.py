"""Checks before the routes: the key and the bounds of a body; and figures of the answers."""

import asyncio
import hmac
import time
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textgen_experiments.serving.errors import ApiError
from textgen_experiments.serving.metrics import ServingMetrics

OPEN_ROUTES = frozenset({"/health"})  # for probes, which have no key
CLOSE = {"Connection": "close"}  # the rest of the body is not read


@dataclass(frozen=True)
class RequestGate:
    """Application that lets requests with the key and a bounded body pass to another one.

    Attributes:
        app: the routes.
        key: key that a request must have as bearer; None for no key.
        most_bytes: largest body.
        timeout: seconds in which the body must be there.
    """

    app: ASGIApp
    key: str | None
    most_bytes: int
    timeout: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that must not pass, and hand on any other."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self.timeout
        await self.app(scope, BoundedBody(receive, self.most_bytes, deadline), send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        """Return why a request must not pass, None if it may."""
        if self.key is not None and path not in OPEN_ROUTES:
            given = headers.get(b"authorization", b"").strip()
            if not hmac.compare_digest(given, b"Bearer " + self.key.encode()):
                return ApiError(
                    401,
                    "Authorization must be 'Bearer KEY' with the key of this server, got another",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer", **CLOSE},
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most_bytes:
            return ApiError(413, too_large(self.most_bytes), headers=CLOSE)
        return None


@dataclass
class BoundedBody:
    """Source of a request's messages that ends with an error where the body is too large or slow.

    Attributes:
        receive: the server's own.
        most_bytes: largest body.
        deadline: moment of the event loop's clock until which it must be there.
        taken: bytes that have come.
        is_complete: True once the body is there; then messages come at any time.
    """

    receive: Receive
    most_bytes: int
    deadline: float
    taken: int = 0
    is_complete: bool = False

    async def __call__(self) -> Message:
        """Return the next message.

        Raises:
            HTTPException: the body is too large, or late.
        """
        if self.is_complete:
            return await self.receive()
        try:
            async with asyncio.timeout_at(self.deadline):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, "body must arrive in time, got a part of it", CLOSE) from None
        self.taken += len(message.get("body", b""))
        if self.taken > self.most_bytes:
            raise HTTPException(413, too_large(self.most_bytes), CLOSE)
        self.is_complete = not message.get("more_body", False)
        return message


@dataclass(frozen=True)
class Measured:
    """Application that counts the answers of another one.

    Attributes:
        app: the application.
        metrics: where answers are counted.
        routes: paths with a count of their own; others are counted together.
    """

    app: ASGIApp
    metrics: ServingMetrics
    routes: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route = scope["path"] if scope["path"] in self.routes else "other"
            self.metrics.count_request(route, status, time.perf_counter() - begun)


def too_large(most_bytes: int) -> str:
    """Return the message about a body that is too large."""
    return f"body must have at most {most_bytes:,} bytes, got more: send texts in parts"
