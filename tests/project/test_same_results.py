"""Agents learn, and models write, what they did: digests of `tests/support/digests.py` are kept."""

import json

import pytest

from tests.support.digests import FILE, digests, machine

pytestmark = pytest.mark.slow


def test_agents_learn_and_models_write_what_they_did(tmp_path):
    kept = json.loads(FILE.read_text())
    if machine() not in kept:
        pytest.skip(f"no digests are kept for {machine()}: see tests/support/digests.py")
    assert dict(digests(tmp_path)) == kept[machine()]
