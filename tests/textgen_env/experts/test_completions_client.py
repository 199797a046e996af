"""Pauses before retries; the client's other behavior is tested in test_remote.py."""

import pytest
from urllib3 import HTTPResponse
from urllib3.exceptions import MaxRetryError

from textgen_env.experts.bounded_http import retry_policy


def after(status, policy):
    """Return the retry policy after a response with `status`."""
    return policy.increment("POST", "/v1/completions", response=HTTPResponse(status=status))


def test_pauses_double_up_to_a_minute():
    policy, pauses = retry_policy(10), []
    for _ in range(10):
        policy = after(503, policy)
        pauses.append(policy.get_backoff_time())
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    with pytest.raises(MaxRetryError):
        after(503, policy)


def test_a_server_may_ask_for_at_most_ten_minutes():
    response = HTTPResponse(status=429, headers={"Retry-After": "7200"})
    assert retry_policy(1).get_retry_after(response) == 600
