"""Redaction of a key from text of others: no part of four characters or more stays, however cut.

Parts are found as they are, in any case, with backslashes before characters, and in the escapes of
JSON, Python, HTML and addresses. Left out: keys that a text spells in a code of its own, such as
base64.
"""

import re

SHORTEST = 4  # characters of a key that must not be shown
MASK = "***"
MAX_BACKSLASHES = 8  # before a character that is escaped again and again


class Redaction:
    """Function that shows a text of others on one line and without any part of a key.

    Args:
        key: the key; an empty one hides nothing.
        max_shown: longest text that is returned, in characters.
    """

    def __init__(self, key: str, max_shown: int) -> None:
        width = min(SHORTEST, len(key))
        parts = {key[start : start + width] for start in range(len(key) - width + 1) if width}
        spelled = sorted("".join(map(_spellings, part)) for part in parts)
        # The lookahead finds parts that overlap.
        self._parts = re.compile(f"(?=({'|'.join(spelled)}))", re.IGNORECASE) if parts else None
        self.max_shown = max_shown
        # Escapes are at most ten times as long as what they spell, and masks are short.
        self._max_read = 20 * max_shown + 12 * len(key)

    def __call__(self, text: str) -> str:
        """Return `text` without line ends, control characters and parts of the key, truncated."""
        line = " ".join(text[: self._max_read].split())
        line = "".join(character for character in line if character.isprintable())
        return self._masked(line)[: self.max_shown]

    def _masked(self, line: str) -> str:
        """Return `line` with a mask in place of each run of parts of the key."""
        if self._parts is None:
            return line
        shown, position = [], 0
        for found in self._parts.finditer(line):
            start, end = found.span(1)
            if start > position or not shown:
                shown += [line[position:start], MASK]
            position = max(position, end)
        return "".join([*shown, line[position:]])


def _spellings(character: str) -> str:
    """Return a pattern of all ways in which texts spell `character`."""
    code, named = ord(character), {'"': "quot", "'": "apos", "&": "amp", "<": "lt", ">": "gt"}
    ways = [
        re.escape(character),
        f"%{code:02x}",
        f"u{code:04x}",
        f"x{code:02x}",
        f"&#0*{code};",
        f"&#x0*{code:x};",
    ]
    if character in named:
        ways.append(f"&{named[character]};")
    return rf"\\{{0,{MAX_BACKSLASHES}}}(?:{'|'.join(ways)})"
