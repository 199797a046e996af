"""More connections than the system allows are one line, not thousands."""

import asyncio
import errno
import os
import resource

from textgen_experiments.serving import connections
from textgen_experiments.serving.connections import ConnectionErrors, allow_open_files


def test_connections_that_wait_are_told_once_in_a_while(monkeypatch):
    told, shown, now = [], [], iter([0.0, 0.0, 1.0, 9.0, 10.0, 10.0])
    monkeypatch.setattr(connections, "tell", told.append)
    monkeypatch.setattr(connections, "monotonic", lambda: next(now))
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "default_exception_handler", shown.append)
    handler = ConnectionErrors()
    loop.set_exception_handler(handler)
    full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for _ in range(4):
        loop.call_exception_handler({"message": "accept", "exception": full})
    other = {"message": "other", "exception": OSError(errno.EPERM, "no")}
    for context in (other, {"message": "none"}):
        loop.call_exception_handler(context)
    loop.close()
    assert told == ["connections wait, since the system allows no more (Too many open files)"] * 2
    assert shown == [other, {"message": "none"}]


def test_the_limit_of_open_files_is_the_users():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, before[1]), before[1]))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200 or before[1] <= 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
