import json

import pytest

from textgen_agents.mle import MLE
from textgen_agents.switch import Switch
from textgen_experiments.evaluation.scores import mean_expert_share
from textgen_experiments.runs.metrics import METRICS

UPDATES = [{"update": 1, "loss": 2.0}, {"update": 2, "loss": 1.0}]


def write_log(folder, *records):
    (folder / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_teachers_share_is_the_mean_over_the_updates(tmp_path):
    shares = [{**UPDATES[0], "expert_share": 0.7}, {**UPDATES[1], "expert_share": 0.3}]
    write_log(tmp_path, *shares, {"update": 2, "bleu": 20.0})
    assert mean_expert_share(tmp_path, Switch()) == pytest.approx(0.5)
    assert mean_expert_share(tmp_path, MLE()) is None, "its teacher writes nothing"


def test_a_log_without_shares_has_none(tmp_path):
    write_log(tmp_path, *UPDATES)
    assert mean_expert_share(tmp_path, Switch()) is None
