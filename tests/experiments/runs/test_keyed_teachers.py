"""Runs with several teachers, of which each pair names one."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch

from textgen_agents.seqkd import SeqKD
from textgen_agents.training.learner import LearnerConfig
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import ExpertError
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import load_model, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import Limits
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.command_line.parse import parse
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError, read_config
from textgen_experiments.runs.outside import ChangedFileError
from textgen_experiments.runs.train import PREPARED, read_outcome, read_prepared, train

LETTERS = "abcdefgh"
SHORT = LearnerConfig(updates=4, batch_size=8, evaluate_every=2)


def write_pairs(path, count, seed, keys=("x", "y")):
    """Write pairs with a key before what the expert reads, as JSON Lines."""
    draw, lines = Random(seed), []
    for index in range(count):
        text = " ".join(draw.choices(LETTERS, k=draw.randint(2, 5)))
        view = f"{keys[index % len(keys)]} {text}"
        lines.append(json.dumps({"source": text, "reference": text, "expert_source": view}) + "\n")
    path.write_text("".join(lines))
    return path


def save_teacher(folder, seed, words):
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_words(words)
    config = TransformerConfig(tokenizer.vocab_size, 16, num_heads=2, feed_forward=32)
    save_model(Transformer(config), folder, tokenizer)
    return folder


@pytest.fixture
def experiment(tmp_path):
    words = [*LETTERS, "x", "y"]
    teachers = [save_teacher(tmp_path / name, seed, words) for seed, name in enumerate("AB")]
    held_out = write_pairs(tmp_path / "held_out.jsonl", 8, 1)
    limits = Limits(max_tokens=8, length_ratio=None)
    train_pairs = write_pairs(tmp_path / "train.jsonl", 24, 0)
    return Experiment(
        task=TextFilesConfig(train_pairs, held_out, held_out, limits=limits),
        teacher=None,
        keyed_teachers=(("x", teachers[0]), ("y", teachers[1])),
        student=RecurrentConfig(width=16),
        agent=SeqKD(beam_size=1),
        learner=SHORT,
        precision="float32",
    )


def run(experiment, folder):
    train(experiment, folder, lambda update, record: None)
    return folder


def test_each_pair_is_taught_by_the_teacher_that_it_names(experiment, tmp_path):
    folder = run(experiment, tmp_path / "run")
    assert read_outcome(folder).teacher_tokens_queried > 0
    assert read_config(folder).experiment == experiment
    prepared, _ = read_prepared(folder / PREPARED)
    key = prepared.expert_view[:, 0]
    written = prepared.reference
    for (_, path), own in zip(experiment.keyed_teachers, key.unique(), strict=True):
        rows = key == own
        logits = load_model(path).eval().sequence_logits(prepared.source[rows], written[rows])
        best = logits[..., 2:].argmax(-1) + 2
        counted = written[rows] != 0
        assert torch.equal(best[counted], written[rows][counted])


def test_a_teacher_that_has_changed_stops_a_run_that_is_resumed(experiment, tmp_path):
    folder = run(replace(experiment, agent=WordKD()), tmp_path / "run")
    (folder / "outcome.json").unlink()
    save_teacher(tmp_path / "B", 7, [*LETTERS, "x", "y"])
    with pytest.raises(ChangedFileError, match="must be as it was when the run"):
        run(replace(experiment, agent=WordKD()), folder)


def test_what_does_not_fit_together_is_one_line_before_training(experiment, tmp_path):
    (first, one), (_, two) = experiment.keyed_teachers
    with pytest.raises(RunError, match=r"^keyed_teachers must have different keys, got x, x"):
        run(replace(experiment, keyed_teachers=((first, one), (first, two))), tmp_path / "a")
    other = save_teacher(tmp_path / "C", 3, [*LETTERS, "x", "y", "z"])
    with pytest.raises(RunError, match=r"^keyed_teachers must all have the student's tokenizer"):
        run(replace(experiment, keyed_teachers=((first, one), ("y", other))), tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"^keyed_teachers must be left out beside another teacher"
    ):
        replace(experiment, teacher=one)
    write_pairs(tmp_path / "train.jsonl", 24, 0, keys="xa")
    with pytest.raises(ExpertError, match="must begin with one of the keys x, y, got 12 rows"):
        run(experiment, tmp_path / "c")


def test_the_command_line_takes_keys_and_folders(tmp_path):
    words = "train --task text --task.train a.jsonl --teacher None --keyed-teachers de A fr B"
    options = parse([*words.split(), "--output", str(tmp_path)])
    keyed = options.experiment.keyed_teachers
    assert [(key, path.name) for key, path in keyed] == [("de", "A"), ("fr", "B")]
