"""Students of the curve of quality against speed, which are trained alike."""

import json
import shutil
from dataclasses import replace

from tests.experiments.recipes.conftest import COPY, one_after_the_other
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


def test_each_model_has_a_point_in_each_precision(tmp_path, monkeypatch, copy_teacher, capsys):
    monkeypatch.setattr(speed_curve, "VERSES_TEACHER", copy_teacher)
    monkeypatch.setattr(speed_curve, "TASKS", {"verses": COPY})
    run = tmp_path / "small"
    shutil.copytree(copy_teacher, run / "model")
    monkeypatch.setattr(speed_curve, "train_curve", lambda options: {run: None})
    speed_curve.speed_curve(SpeedCurveOptions(tmp_path / "curve"))
    points = json.loads((tmp_path / "curve" / "results.json").read_text())["rows"]
    assert [(point["model"], point["precision"]) for point in points] == [
        (name, precision)
        for name in ("teacher", "small")
        for precision in ("float32", "bfloat16", "int8")
    ]
    assert points[0]["speedup"] == 1.0
    assert points[3]["bleu"] == points[0]["bleu"], "it is the same model"
    assert "| small | int8 |" in (tmp_path / "curve" / "tables.md").read_text()
    assert (tmp_path / "curve" / "curve.png").stat().st_size > 1000
    assert "speed-up" in capsys.readouterr().out
