"""Students of the curve of quality against speed, which are trained alike."""

from dataclasses import replace

from tests.experiments.recipes.conftest import one_after_the_other
from textgen_env.models.teacher_layers import TeacherLayers
from textgen_experiments.recipes import speed_curve
from textgen_experiments.recipes.speed_curve import SpeedCurveOptions, curve_runs, train_curve
from textgen_experiments.runs.train import PREPARED


def test_students_differ_in_size_alone():
    runs = curve_runs(SpeedCurveOptions())
    assert len(runs) >= 6
    assert len({(run.task, run.agent, run.learner.updates) for run in runs.values()}) == 1
    assert len({(run.student, run.student_from_teacher) for run in runs.values()}) == len(runs)


def test_all_learn_from_the_texts_that_the_first_prepares(tmp_path, monkeypatch, copying):
    make = curve_runs

    def smaller(options):
        small = {}
        for folder, run in list(make(options).items())[:3]:
            layers = TeacherLayers(encoder=1, decoder=len(small) + 1)
            small[folder] = copying(replace(run, student_from_teacher=layers))
        return small

    monkeypatch.setattr(speed_curve, "curve_runs", smaller)
    monkeypatch.setattr(speed_curve, "train_in_parallel", one_after_the_other)
    runs = train_curve(SpeedCurveOptions(tmp_path / "curve", tmp_path / "none"))
    texts = {(folder / PREPARED).read_bytes() for folder in runs}
    assert len(texts) == 1
