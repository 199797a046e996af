"""How long a request that failed waits; all else about the server is in test_remote_expert.py."""

import pytest
from urllib3 import HTTPResponse
from urllib3.exceptions import MaxRetryError

from textgen_env.experts.completions_client import patience


def after(status, waiting):
    """What is left of a request's tries after one more was answered so."""
    return waiting.increment("POST", "/v1/completions", response=HTTPResponse(status=status))


def test_pauses_double_from_the_second_on_up_to_a_minute():
    waiting, pauses = patience(10), []
    for _ in range(10):
        waiting = after(503, waiting)
        pauses.append(waiting.get_backoff_time())
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    with pytest.raises(MaxRetryError):
        after(503, waiting)


def test_a_server_may_ask_for_ten_minutes_and_no_more():
    asked = HTTPResponse(status=429, headers={"Retry-After": "7200"})
    assert patience(1).get_retry_after(asked) == 600
