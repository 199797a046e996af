"""Command `settings`: in what runs differ, read from their folders alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from textgen_experiments.evaluation.given_runs import without_own_files
from textgen_experiments.evaluation.results import run_names
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.runs.folder import read_config
from textgen_experiments.runs.plain_settings import differing, settings_of_run


@dataclass(frozen=True)
class SettingsOptions:
    """Print the settings in which runs differ, or all those of a single run.

    Attributes:
        runs: folders of runs, finished or not.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]


def compare_settings(options: SettingsOptions) -> None:
    """Print a row for each setting in which the runs differ, by the name that its option has.

    Raises:
        RunError: there is no run, or one is given twice.
        MissingPluginError: a part of a run is of a plugin that is not loaded.
    """
    folders = without_own_files(options.runs)
    names = run_names(folders)
    values = [settings_of_run(read_config(folder)) for folder in folders]
    settings = dict(zip(names, values, strict=True))
    shown = differing(settings) if len(settings) > 1 else list(values[0])
    rows = [[name, *(each.get(name, "-") for each in values)] for name in shown]
    title = f"{len(shown)} settings differ" if len(settings) > 1 else "settings"
    print_table(title, ["setting", *names], rows, left=["setting", *names])
