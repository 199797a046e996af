"""The version and what else several files say about the project."""

import datetime
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
RELEASES = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)


def test_the_citation_is_of_this_version():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["keywords"] == PROJECT["keywords"][: len(CITATION["keywords"])]
    assert [each["name"] for each in CITATION["authors"]] == [
        each["name"] for each in PROJECT["authors"]
    ]


def test_the_changelog_says_what_is_in_each_version_and_since_when():
    """Notes of what no version holds yet may stand above, as "Unreleased"."""
    dated = [release for release in RELEASES if release != "Unreleased"]
    assert RELEASES[-len(dated) :] == dated
    found = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) \(([\d-]+)\)", release) for release in dated]
    versions = [tuple(map(int, each.groups()[:3])) for each in found]
    dates = [datetime.date.fromisoformat(each[4]) for each in found]
    assert ".".join(map(str, versions[0])) == PROJECT["version"]
    assert dates[0] == CITATION["date-released"]
    assert versions == sorted(set(versions), reverse=True)
    assert dates == sorted(dates, reverse=True)
