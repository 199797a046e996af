"""Metadata that depends on where a distribution is published; all else is in pyproject.toml.

A package index shows the README without the repository around it. With the repository's address in
the environment variable PROJECT_URL, as on GitHub and GitLab, the README's links and images name
that address at this version's tag, and the index links to code, documentation and changes:

    PROJECT_URL=https://example.org/owner/textgen-env python -m build
"""

import os
import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK_INSIDE = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!https://|#)(?P<path>[^)]+)\)")


def published_readme(text: str, address: str, tag: str) -> str:
    """Return the README with absolute links in place of those into the repository."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['text']}]({address}/{kind}/{tag}/{link['path']})"

    return LINK_INSIDE.sub(absolute, text)


def published_links(address: str, tag: str) -> dict[str, str]:
    """Return the addresses that a package index shows beside the README."""
    files = f"{address}/blob/{tag}"
    return {
        "Source": address,
        "Documentation": f"{files}/docs/index.md",
        "Changelog": f"{files}/CHANGELOG.md",
    }


def published_metadata(address: str) -> dict[str, object]:
    """Return the arguments of `setup` for an address, "" if there is none.

    Raises:
        SystemExit: `address` is not one of the web.
    """
    if address and not address.startswith("https://"):
        raise SystemExit(f"PROJECT_URL must begin with https://, got {address!r}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address, tag = address.rstrip("/"), f"v{project['version']}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        "long_description": published_readme(readme, address, tag) if address else readme,
        "long_description_content_type": "text/markdown",
        "project_urls": published_links(address, tag) if address else {},
    }


if __name__ == "__main__":
    setup(**published_metadata(os.environ.get("PROJECT_URL", "")))
