"""Best weights of runs whose validation BLEU does not move, and the scores to choose from."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import load_file

from textgen_agents.mle import MLE
from textgen_agents.training.checkpoint import Counters
from textgen_agents.training.learner import LearnerConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_experiments.command_line.parse import parse
from textgen_experiments.command_line.train import TrainOptions
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import read_config
from textgen_experiments.runs.outcome import read_outcome, summary_of
from textgen_experiments.runs.train import train

SHORT = LearnerConfig(updates=24, batch_size=8, learning_rate=0.02, warmup=4, evaluate_every=6)
DIGITS = dict(zip("0123456789", "零一二三四五六七八九", strict=True))


def letter_pairs(generator):
    """Return lines of words in two groups, such as "aeg cef", to be copied."""
    for _ in range(400):
        text = " ".join("".join(sorted(generator.sample("abcdefgh", 3))) for _ in range(2))
        yield f"{text}\t{text}\n"


def numeral_pairs(generator):
    """Return lines of digits with their Chinese numerals, such as "8 6 0 1" with "八六零一。"."""
    for _ in range(400):
        digits = generator.choices("0123456789", k=4)
        yield f"{' '.join(digits)}\t{''.join(DIGITS[digit] for digit in digits)}。\n"


@pytest.fixture
def trained(tmp_path):
    """Return a function that trains on lines for 120 updates with six evaluations."""

    def make(lines, name="run", **settings):
        data = tmp_path / "pairs.tsv"
        data.write_text("".join(lines(random.Random(0))))
        language = settings.pop("language", None)
        experiment = Experiment(
            task=TextFilesConfig(data, vocab_size=320, target_language=language),
            teacher=None,
            student=RecurrentConfig(width=48),
            agent=MLE(),
            learner=LearnerConfig(
                updates=120, batch_size=32, learning_rate=0.02, warmup=20, evaluate_every=20
            ),
            precision="float32",
        )
        train(replace(experiment, **settings), tmp_path / name, lambda update, record: None)
        return tmp_path / name

    return make


def evaluations(folder: Path):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["update"]: record for record in records if "bleu" in record}


@pytest.mark.parametrize("lines", [letter_pairs, numeral_pairs])
def test_weights_are_kept_by_loss_where_bleu_stays_0(trained, capsys, lines):
    folder = trained(lines)
    found = evaluations(folder)
    assert {record["bleu"] for record in found.values()} == {0.0}
    best = min(found, key=lambda update: found[update]["reference_loss"])
    assert read_outcome(folder).best_update == best > 60
    assert found[best]["reference_loss"] < 0.7 * found[20]["reference_loss"]
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("warning:") == 1
    assert "BLEU cannot rise here: no reference has 4 words" in error
    assert "--metric" in error
    assert ("--task.target-language" in error) == (lines is numeral_pairs)


def test_the_target_language_makes_bleu_move(trained, capsys):
    folder = trained(numeral_pairs, language="zh")
    found = evaluations(folder)
    best = max(found, key=lambda update: found[update]["bleu"])
    assert read_outcome(folder).validation_bleu == found[best]["bleu"] > 20
    error = capsys.readouterr().err
    assert "tok:zh" in error.replace("\n", "")
    assert "warning" not in error


@pytest.mark.parametrize(
    ("metric", "figure", "words"),
    [
        ("chrf", "chrf", "chrF {:.1f}"),
        ("exact", "exact_match", "exact {:.1f}"),
        ("reference-loss", "negative_reference_loss", "reference loss {:.3f}"),
    ],
)
def test_the_score_that_keeps_the_best_weights_can_be_chosen(trained, metric, figure, words):
    folder = trained(letter_pairs, metric=metric, learner=SHORT)
    found, outcome = evaluations(folder), read_outcome(folder)
    best = max(found, key=lambda update: (found[update][figure], -found[update]["reference_loss"]))
    assert outcome.best_update == best
    assert outcome.validation_bleu == found[best]["bleu"]
    assert outcome.metric == metric
    is_loss = metric == "reference-loss"
    assert outcome.validation_score == (-1 if is_loss else 1) * found[best][figure]
    assert f"validation {words.format(outcome.validation_score)}, BLEU " in summary_of(
        folder, outcome, 24
    )
    for record in found.values():
        if metric == "reference-loss":
            assert record[figure] == pytest.approx(-record["reference_loss"])
    assert read_config(folder).experiment.metric == metric


def test_a_score_that_is_always_0_is_warned_about_once(trained, capsys):
    learner = LearnerConfig(updates=10, batch_size=4, learning_rate=0.0, evaluate_every=2)
    trained(letter_pairs, metric="exact", learner=learner)
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("warning: exact was 0 at every evaluation so far") == 1
    learner = replace(learner, evaluate_every=10)
    trained(letter_pairs, "short", metric="exact", learner=learner)
    assert capsys.readouterr().err.count("warning:") == 1


def test_a_run_of_an_earlier_version_goes_on(trained, tmp_path):
    """Check that its configuration, which has neither metric nor language, is the defaults'."""
    folder = trained(letter_pairs, learner=SHORT)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["experiment"]["metric"], content["experiment"]["task"]["target_language"]
    path.write_text(json.dumps(content))
    (folder / "outcome.json").unlink()
    before = load_file(folder / "model/model.safetensors")
    after = load_file(trained(letter_pairs, learner=SHORT) / "model/model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)
    assert read_config(folder).experiment.metric == "bleu"


@pytest.mark.parametrize("task", ["verses", "text", "hub"])
def test_metric_and_language_are_options_of_train(task):
    files = {"text": ["--task.train", "a.tsv"], "hub": ["--task.path", "x/y"], "verses": []}
    options = ["--metric", "reference-loss", "--task.target-language", "zh"]
    arguments = ["train", "--output", "out", "--task", task, *files[task], *options]
    experiment = cast("TrainOptions", parse(arguments)).experiment
    assert experiment.metric == "reference-loss"
    assert experiment.task == replace(cast("Any", experiment.task), target_language="zh")


def test_a_score_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="metric must be one of bleu, chrf, exact, reference-loss"):
        Experiment(metric=cast("Any", "rouge"))


@pytest.mark.parametrize(
    ("scores", "losses", "expected"),
    [
        ([1.0], [], True),
        ([2.0, 1.0], [2.0, 1.0], False),
        ([1.0, 2.0], [1.0, 2.0], True),
        ([0.0, 0.0, 0.0], [3.0, 1.0, 2.0], False),
        ([0.0, 0.0, 0.0], [3.0, 2.0, 1.0], True),
        ([5.0, 5.0], [2.0, 2.0], True),
        ([5.0, 5.0], [], True),
    ],
)
def test_equal_scores_go_to_the_lower_loss_and_then_to_the_later_weights(scores, losses, expected):
    assert Counters(validation=scores, validation_losses=losses).last_is_best == expected
