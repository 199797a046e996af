"""Runs whose teacher is the student's own average, on texts that the expert reads differently."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents.gkd import GKD
from textgen_agents.mle import MLE
from textgen_agents.seqkd import SeqKD
from textgen_agents.training.learner import LearnerConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tasks.task import Limits
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.train import read_outcome, train

LETTERS = "abcdefgh"
TAUGHT = LearnerConfig(updates=6, batch_size=8, evaluate_every=3, self_teacher=0.9)


@pytest.fixture
def experiment(tmp_path):
    """Return settings of a student that goes on from random weights without another teacher."""
    draw, texts = Random(0), {}
    while len(texts) < 40:
        words = draw.choices(LETTERS, k=draw.randint(2, 5))
        texts[" ".join(words)] = {"source": " ".join(["a", *words[1:]]), "expert_source": None}
    records = [
        {**fields, "reference": text, "expert_source": f"{text} {text}"}
        for text, fields in texts.items()
    ]
    for name, some in (("train", records[:30]), ("held_out", records[30:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in some))
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_words(list(LETTERS))
    student = RecurrentConfig(tokenizer.vocab_size, width=16).build(tokenizer.special)
    save_model(student, tmp_path / "start", tokenizer)
    held_out = tmp_path / "held_out.jsonl"
    limits = Limits(max_tokens=8, length_ratio=None)
    return Experiment(
        task=TextFilesConfig(tmp_path / "train.jsonl", held_out, held_out, limits=limits),
        teacher=None,
        student_init=tmp_path / "start",
        agent=GKD(),
        learner=TAUGHT,
        precision="float32",
    )


def run(experiment, folder):
    train(experiment, folder, lambda update, record: None)
    return folder


def test_the_run_needs_no_other_teacher_and_keeps_its_own(experiment, tmp_path):
    folder = run(experiment, tmp_path / "run")
    assert read_outcome(folder).teacher_tokens_queried > 0
    held = load_file(folder / "checkpoints" / "last.safetensors")
    names = {name.removeprefix("teacher.") for name in held if name.startswith("teacher.")}
    assert names == {name.removeprefix("student.") for name in held if name.startswith("student.")}
    weights = load_file(folder / "model" / "model.safetensors")
    assert set(weights) <= names


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"learner": replace(TAUGHT, self_teacher=None)}, RunError, "^teacher must be given"),
        ({"agent": MLE()}, ValueError, "^self_teacher must be left out for MLE"),
        ({"agent": SeqKD()}, ValueError, "^self_teacher must be left out for SeqKD, which keeps"),
        (
            {"teacher": "start"},
            RunError,
            r"^teacher must be left out beside self_teacher, got .*0.9",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line_before_training(
    experiment, tmp_path, changes, kind, message
):
    if "teacher" in changes:
        changes = {"teacher": tmp_path / changes["teacher"]}
    with pytest.raises(kind, match=message):
        run(replace(experiment, **changes), tmp_path / "run")
