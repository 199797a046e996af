"""HTTP connections whose answers are bounded in size and time, whatever the server sends.

Libraries bound the time without data and leave the rest to the server: a body without an end, a
byte a second, a length of 64 bits. Here everything that an attempt reads, headers too, is counted.
"""

import http.client
import io
import time
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

RETRIED_STATUSES = (429, 500, 502, 503, 504)
BACKOFF = 0.5  # seconds; the pauses before attempts 2, 3, 4, ... are 0, 2, 4, ... times this
MAX_BACKOFF = 60.0  # seconds
MAX_RETRY_AFTER = 600  # seconds; the longest pause that the server may ask for
CONNECT_TIMEOUT = 10.0  # seconds
MIN_RATE = 100_000  # bytes per second at which an answer must arrive at least


class OversizeError(Exception):
    """Answer that is larger than its request can ask for."""


@dataclass
class Allowance:
    """Bounds of an answer, which the client sets before each request.

    Attributes:
        timeout: seconds without data; an answer may take twice as long, and its size at `MIN_RATE`.
        max_bytes: largest size, headers included.
    """

    timeout: float
    max_bytes: int = 0


def bounded_pool(allowance: Allowance, retries: int) -> urllib3.PoolManager:
    """Return a pool of connections whose answers keep to `allowance`.

    Args:
        allowance: read when an attempt begins.
        retries: attempts after the first.
    """

    def respond(*args: Any, **kwargs: Any) -> _BoundedResponse:  # noqa: ANN401 - http.client's own
        return _BoundedResponse(allowance, *args, **kwargs)

    class Plain(HTTPConnection):
        response_class: Any = staticmethod(respond)

    class Encrypted(HTTPSConnection):
        response_class: Any = staticmethod(respond)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls: Any = Plain

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls: Any = Encrypted

    timeout = allowance.timeout
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout),
        retries=retry_policy(retries),
    )
    pool.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}
    return pool


def retry_policy(retries: int) -> urllib3.Retry:
    """Return the policy by which a request is sent again, at most `retries` times."""
    return _LenientRetry(
        total=retries,
        status_forcelist=RETRIED_STATUSES,
        allowed_methods=None,  # POST too: repeating a query has no effect on the server
        backoff_factor=BACKOFF,
        backoff_max=MAX_BACKOFF,
        retry_after_max=MAX_RETRY_AFTER,
        raise_on_status=False,
    )


class _LenientRetry(urllib3.Retry):
    """Policy that takes a pause of no meaning for none."""

    def get_retry_after(self, response: Any) -> float | None:  # noqa: ANN401 - urllib3's own
        """Return the seconds that the server asks for, None if it names none."""
        try:
            return super().get_retry_after(response)
        except (HTTPError, ValueError, TypeError, IndexError, ArithmeticError):
            return None


class _BoundedResponse(http.client.HTTPResponse):
    """Response that is read within an allowance."""

    def __init__(self, allowance: Allowance, sock: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(sock, *args, **kwargs)
        self._allowance = allowance
        self.fp = io.BufferedReader(_BoundedReader(self.fp.detach(), allowance))

    def begin(self) -> None:
        """Read the headers, and refuse a length beyond the allowance before it is reserved."""
        super().begin()
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) > 1 or any("," in length for length in lengths):
            # urllib3 raises, too, but leaves the connection open.
            raise http.client.HTTPException("there is more than one Content-Length")
        if self.length is not None and self.length > self._allowance.max_bytes:
            raise OversizeError


class _BoundedReader(io.RawIOBase):
    """Reader of a socket that counts bytes and seconds."""

    def __init__(self, raw: io.RawIOBase, allowance: Allowance) -> None:
        self._raw, self._allowance = raw, allowance
        self._start, self._received = time.monotonic(), 0

    def readable(self) -> bool:
        """Return True: it is read."""
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - any buffer
        """Read into `buffer`.

        Raises:
            OversizeError: more has come than allowed.
            TimeoutError: it has taken longer than allowed.
        """
        allowed = 2 * self._allowance.timeout + self._received / MIN_RATE
        if time.monotonic() - self._start > allowed:
            raise TimeoutError(f"the answer is not complete after {allowed:g} seconds")
        count = self._raw.readinto(buffer)
        self._received += count or 0
        if self._received > self._allowance.max_bytes:
            raise OversizeError
        return count

    def close(self) -> None:
        """Close the socket's reader, too."""
        self._raw.close()
        super().close()
