"""Server of uvicorn without handlers for signals and without a log of requests."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from starlette.types import ASGIApp
from uvicorn import Config, Server

SPARE_SECONDS = 2  # for the answers to requests that were not finished


class QuietServer(Server):
    """Server that leaves signals to this program, whose lines and exit codes are its own."""

    @classmethod
    def of(cls, app: ASGIApp, grace: float) -> Self:
        """Return the server of an application.

        Args:
            app: the application.
            grace: seconds in which requests are finished once it must stop.
        """
        config = Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(grace) + SPARE_SECONDS,
        )
        return cls(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: the handlers of the program stay."""
        yield
