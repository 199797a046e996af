"""The built distribution, installed beside one that owns the import name `agents`.

`openai-agents` is that one. Its own dependencies are not installed, so it is not imported here: its
files are compared with the hashes of its `RECORD`, and Python must find `agents` there. A stand-in
with the same import names takes its place in the default run, which needs no network.
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "textgen_env": "textgen_env",
    "textgen_agents": "agents",
    "textgen_experiments": "experiments",
}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OPENAI_AGENTS = "openai-agents==0.24.0"
NOT_INSTALLED = {"experiments/LOG.md"}
OF_A_CLONE = {".ci", ".gitignore", "typings"}  # not in the source distribution
MADE_FOR_SOURCES = {"PKG-INFO", "setup.cfg", "textgen_env.egg-info"}
LINK = re.compile(r"\]\(([^)]+)\)")  # of Markdown: the address of a link or an image
FIND = (
    "import importlib.util, sys; print(*(importlib.util.find_spec(n).origin for n in sys.argv[1:]))"
)


def run(command, **options):
    """Run `command` and return its output; a failure shows what it wrote."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked():
    """Return the files of the work tree that git does not ignore, relative to it.

    An unpacked source distribution has no repository: its files are those that it lists.
    """
    if (ROOT / ".git").exists():
        listing = run(["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"], cwd=ROOT)
        names = set(listing.split("\0")) - {""}
    else:
        listed = (ROOT / "textgen_env.egg-info" / "SOURCES.txt").read_text().splitlines()
        names = {name for name in listed if not name.startswith("textgen_env.egg-info/")}
    return [path for path in map(Path, sorted(names)) if os.path.lexists(ROOT / path)]


def installed_name(path):
    """Return the path of a file of the three folders as it stands in a wheel."""
    package = next(name for name, folder in FOLDERS.items() if folder == path.parts[0])
    return Path(package, *path.parts[1:]).as_posix()


def expected_files():
    """Return the names in the wheel of all files of the three packages."""
    ours = [path for path in tracked() if path.parts[0] in FOLDERS.values()]
    return {installed_name(path) for path in ours if path.as_posix() not in NOT_INSTALLED}


def build_wheel(source, folder):
    """Build the wheel of the project in `source` and return its path."""
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source])
    (path,) = folder.glob("textgen_env-*.whl")
    return path


def files_in(wheel):
    """Return the names of the files in a wheel, without its metadata."""
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a copy of the work tree, so that none of what is built stays in it."""
    folder = tmp_path_factory.mktemp("source")
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory):
    """Return the folder that the source distribution unpacks to."""
    folder = tmp_path_factory.mktemp("unpacked")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run([sys.executable, "-c", code], cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """Return a wheel with the packages `agents` and `experiments`."""
    path = tmp_path_factory.mktemp("stand_in") / "stand_in-1.0-py3-none-any.whl"
    info = "stand_in-1.0.dist-info"
    files = {
        "agents/__init__.py": "OWNER = 'stand_in'\n",
        "experiments/__init__.py": "OWNER = 'stand_in'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: stand-in\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(scope="module")
def openai_agents(tmp_path_factory):
    """Return the wheel of openai-agents."""
    folder = tmp_path_factory.mktemp("openai_agents")
    command = [*PIP, "download", "--retries", "1", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, OPENAI_AGENTS], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{OPENAI_AGENTS} cannot be downloaded: {done.stderr.strip()}")
    (path,) = folder.iterdir()
    return path


def metadata(source, folder, address):
    """Return the metadata that is built of `source` with `address` in PROJECT_URL, "" for none."""
    code = "from setuptools import build_meta as b; print(b.prepare_metadata_for_build_wheel("
    code = f"{code}{str(folder)!r}))"
    folder.mkdir()
    environment = {**os.environ, "PROJECT_URL": address}
    name = run([sys.executable, "-c", code], cwd=source, env=environment).split()[-1]
    return message_from_string((folder / name / "METADATA").read_text(encoding="utf-8"))


def environment_with(folder, wheels):
    """Install `wheels` in turn into a fresh environment that sees this one's dependencies.

    Returns:
        Its folder of programs and its folder of packages.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    python = folder / "bin" / "python"
    for wheel in wheels:
        command = [*PIP, "--python", python, "install", "--no-index", "--no-deps", "--no-compile"]
        run_inside([*command, wheel], folder)  # a path of the tests would hide what is missing
    dependencies = Path(torch.__file__).parents[1]  # added last, as pip would take it as installed
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return python.parent, packages


def run_inside(command, folder):
    """Run `command` in `folder`, from where the work tree is not to be seen."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run(command, cwd=folder, env={**environment, "OMP_NUM_THREADS": "1"})


def digest(path):
    """Return the hash of a file as `RECORD` writes it."""
    value = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
    return "sha256=" + value.decode().rstrip("=")


def project_version():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inits = [path for path in tracked() if path.name == "__init__.py"]
    inits = [path for path in inits if path.parts[0] in FOLDERS.values()]
    packages = {Path(installed_name(path)).parent.as_posix().replace("/", ".") for path in inits}
    assert set(settings["packages"]) == packages


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    assert files_in(wheel) == expected_files()
    assert {name.split("/")[0] for name in files_in(wheel)} == set(FOLDERS)


def test_the_source_distribution_holds_what_git_tracks(unpacked):
    """So that its tests find the pages, tables, models and programs that they read."""
    found = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    made = {path for path in found if path.parts[0] in MADE_FOR_SOURCES}
    assert found - made == {path for path in tracked() if path.parts[0] not in OF_A_CLONE}
    assert not [path for path in unpacked.rglob("*") if path.is_symlink()]


def test_the_source_distribution_makes_the_same_wheel(unpacked, wheel, tmp_path):
    again = build_wheel(unpacked, tmp_path / "wheel")
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert files_in(again) == files_in(wheel)
    assert all(first.read(name) == second.read(name) for name in files_in(wheel))


def test_links_of_a_published_readme_work_without_the_repository(source, tmp_path):
    """Each names a file of the project at the tag of its version; anchors stay."""
    address = "https://example.org/owner/textgen-env"
    built = metadata(source, tmp_path / "built", f"{address}/")
    readme, tag = built.get_payload(), f"v{project_version()}"
    links = LINK.findall(readme)
    ours = [link.removeprefix(f"{address}/") for link in links if link.startswith(address)]
    assert len(ours) > 50
    assert all(link.startswith("https://") for link in links)
    assert f"raw/{tag}/docs/speed-curve.png" in ours
    kinds, tags, paths = zip(*(link.split("/", 2) for link in ours), strict=True)
    assert (set(kinds), set(tags)) == ({"blob", "raw"}, {tag})
    assert [path for path in paths if not (ROOT / path.partition("#")[0]).exists()] == []
    urls = dict(entry.split(", ") for entry in built.get_all("Project-URL"))
    assert urls["Source"] == address
    assert set(urls) == {"Source", "Documentation", "Changelog"}


def test_without_an_address_the_readme_is_published_as_it_is(source, tmp_path):
    built = metadata(source, tmp_path / "built", "")
    assert built.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert built.get_all("Project-URL") is None
    assert built["Description-Content-Type"] == "text/markdown"


def test_an_address_that_is_none_is_refused(source, tmp_path):
    with pytest.raises(AssertionError, match="PROJECT_URL must begin with https://, got 'here'"):
        metadata(source, tmp_path / "built", "here")


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_owner_of_the_name_agents_is_left_alone(wheel, stand_in, tmp_path, ours_first):
    wheels = [wheel, stand_in] if ours_first else [stand_in, wheel]
    programs, packages = environment_with(tmp_path / "env", wheels)
    assert "stand_in" in (packages / "agents" / "__init__.py").read_text()
    assert "stand_in" in (packages / "experiments" / "__init__.py").read_text()
    found = run_inside([programs / "python", "-c", FIND, *FOLDERS], tmp_path).split()
    assert found == [str(packages / name / "__init__.py") for name in FOLDERS]
    version = run_inside([programs / "textgen", "--version"], tmp_path)
    assert version == f"textgen {project_version()}\n"


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [True, False])
def test_it_works_beside_openai_agents(wheel, openai_agents, tmp_path, ours_first):
    wheels = [wheel, openai_agents] if ours_first else [openai_agents, wheel]
    programs, packages = environment_with(tmp_path / "env", wheels)
    assert "usage: textgen" in run_inside([programs / "textgen", "--help"], tmp_path)
    module = [programs / "python", "-m", "textgen_env", "--help"]
    assert "usage: textgen" in run_inside(module, tmp_path)
    version = run_inside([programs / "textgen", "--version"], tmp_path)
    assert version == f"textgen {project_version()}\n"
    found = run_inside([programs / "python", "-c", FIND, "agents", *FOLDERS], tmp_path).split()
    assert found == [str(packages / name / "__init__.py") for name in ("agents", *FOLDERS)]
    (record,) = packages.glob("openai_agents-*.dist-info/RECORD")
    entries = [line.rsplit(",", 2) for line in record.read_text().splitlines()]
    theirs = {name: value for name, value, _ in entries if name.startswith("agents/") and value}
    assert theirs["agents/__init__.py"]
    assert {name: digest(packages / name) for name in theirs} == theirs
