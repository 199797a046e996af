"""Access to the server: the address that it listens at, and the key that requests must have."""

import os
import re
from ipaddress import ip_address
from pathlib import Path

SERVE_KEY = "TEXTGEN_SERVE_KEY"  # not that of a teacher's server, which is another secret
SHORTEST_KEY = 16  # characters
KEY = re.compile(r"[!-~]+")  # ASCII without spaces: what a header holds unchanged


def serving_key(host: str, key_file: Path | None) -> str | None:
    """Return the key that requests must have, None for no key.

    It is read from a file or from the environment, and never from the command line, which other
    users of the machine see.

    Args:
        host: address that the server is bound to.
        key_file: file of the key; None for the environment's.

    Raises:
        ValueError: a key that is too short or no key at all, two of them, or none where others than
            this machine can reach the server.
    """
    named = os.environ.get(SERVE_KEY)
    if key_file is not None and named is not None:
        raise ValueError(f"api_key_file must be left out where {SERVE_KEY} is set: unset one")
    if key_file is not None:
        return _checked_key(f"key in {key_file}", _content(key_file))
    if named is not None:
        return _checked_key(SERVE_KEY, named)
    if not is_loopback(host):
        raise ValueError(
            f"host must be a loopback address such as 127.0.0.1 without a key, got {host}: give "
            f"--api-key-file, or set {SERVE_KEY}"
        )
    return None


def is_loopback(host: str) -> bool:
    """Return True if only programs of this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _content(key_file: Path) -> str:
    """Return the text of a key's file, in which bytes that are no text stay wrong."""
    try:
        return key_file.read_bytes().decode(errors="replace")
    except OSError as error:
        raise ValueError(
            f"api_key_file must be a readable file, got {key_file}: {error.strerror}"
        ) from None


def _checked_key(name: str, text: str) -> str:
    """Return the key in a text, which errors do not repeat."""
    key = text.strip()
    if len(key) < SHORTEST_KEY or not KEY.fullmatch(key):
        raise ValueError(
            f"{name} must be one word of at least {SHORTEST_KEY} ASCII characters, got another: "
            'make one with `python -c "import secrets; print(secrets.token_hex())"`'
        )
    return key
