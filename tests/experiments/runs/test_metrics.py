import json

from textgen_experiments.runs.metrics import METRICS, forget_after, metrics_line, read_metrics

RECORDS = [
    {"update": 1, "loss": 0.1 + 0.2},
    {"update": 2, "loss": float("inf")},
    {"update": 2, "bleu": 1e-300},
    {"update": 3, "loss": 5e22},
]


def test_what_was_logged_is_read_up_to_a_line_cut_short(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / METRICS).write_text("".join(map(metrics_line, RECORDS)) + '{"update": 4, "lo')
    assert read_metrics(tmp_path) == RECORDS


def test_later_updates_are_forgotten_and_the_others_stay_to_the_letter(tmp_path):
    forget_after(tmp_path, 2)
    assert not (tmp_path / METRICS).exists()
    whole = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / METRICS).write_text(whole + "{")
    forget_after(tmp_path, 2)
    assert (tmp_path / METRICS).read_text() == "".join(whole.splitlines(keepends=True)[:3])
    forget_after(tmp_path, 0)
    assert (tmp_path / METRICS).read_text() == ""
