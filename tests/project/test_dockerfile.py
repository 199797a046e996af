"""The Dockerfile names files, versions and options that exist; it is not built here."""

import json
import re
from pathlib import Path

from textgen_experiments.command_line.table import commands_by_name

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text().splitlines()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def words_after(instruction):
    return [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]


def test_what_is_copied_exists_and_is_sent_to_the_builder():
    copied = {word for words in words_after("COPY") for word in words[:-1]}
    assert copied == {line.removeprefix("!") for line in IGNORED if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)


def test_its_torch_is_that_of_the_constraints():
    (version,) = re.findall(r"torch==(\S+)", "\n".join(LINES))
    assert f"torch=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_it_serves_as_a_user_without_rights():
    assert words_after("USER") == [["textgen"]]
    (entry,) = [line.removeprefix("ENTRYPOINT ") for line in LINES if line.startswith("ENTRYPOINT")]
    program, command, folder, *options = json.loads(entry)
    assert (program, command, folder) == ("textgen", "serve", "/model")
    assert {word for word in options if word.startswith("--")} <= commands_by_name()[
        "serve"
    ].options.keys()
