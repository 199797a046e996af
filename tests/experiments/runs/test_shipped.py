"""Paths of what comes with the project, which do not depend on where it is installed."""

import json
from pathlib import Path

import pytest

from textgen_experiments.runs.experiment import VERSES_TEACHER, Experiment
from textgen_experiments.runs.folder import CONFIG, Run, read_config, write_config
from textgen_experiments.runs.outside import check_unchanged, outside_digests
from textgen_experiments.runs.shipped import PACKAGE, path_of_name, portable_name


@pytest.mark.parametrize("path", [VERSES_TEACHER, Path("runs/a"), Path("/data/x.tsv"), PACKAGE])
def test_a_name_leads_back_to_its_path(path):
    assert path_of_name(portable_name(path)) == path


def test_config_names_no_path_of_the_machine_for_the_shipped_teacher(tmp_path):
    experiment = Experiment()
    run = Run(experiment, "float32", True, outside_digests(experiment))
    write_config(tmp_path, run, {})
    text = (tmp_path / CONFIG).read_text()
    assert str(PACKAGE) not in text
    assert "textgen_experiments:teachers/verses/model.safetensors" in text
    assert read_config(tmp_path) == run


def test_absolute_names_of_earlier_versions_are_understood(tmp_path):
    experiment = Experiment()
    write_config(tmp_path, Run(experiment, "float32", True, outside_digests(experiment)), {})
    path = tmp_path / CONFIG
    path.write_text(path.read_text().replace("textgen_experiments:", f"{PACKAGE}/"))
    assert str(VERSES_TEACHER) in json.loads(path.read_text())["experiment"]["teacher"]["path"]
    run = read_config(tmp_path)
    check_unchanged(tmp_path, run.experiment, run.digests)
