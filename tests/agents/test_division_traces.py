"""Recchia's result: 200 texts with the steps of long division teach what 200 answers do not."""

import sys
from dataclasses import replace

import pytest
import torch

from textgen_agents.evaluation.quality import translate
from textgen_agents.mle import MLE
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.division import DivisionConfig, answer_of, division_task

pytestmark = pytest.mark.slow

NUMBERS = DivisionConfig()
CONFIG = LearnerConfig(
    updates=900, batch_size=32, learning_rate=4e-3, warmup=90, evaluate_every=900, seed=0
)


def right_answers(config, make_env, folder):
    """Return the share of unseen remainders that mle's student gets right."""
    task = division_task(config)
    torch.manual_seed(0)
    model = TransformerConfig(
        task.tokenizer.vocab_size,
        width=64,
        num_heads=4,
        feed_forward=128,
        num_encoder_layers=1,
        num_decoder_layers=2,
        dropout=0.1,
    )
    student, env = Transformer(model), make_env(task, CONFIG.batch_size)
    learner = Learner(
        MLE(), student, env=env, folder=folder, config=CONFIG, precision=torch.float32
    )
    learner.train(lambda student: 0.0, lambda update, record: None)
    written = translate(student.eval(), task, [pair.source for pair in task.test])
    right = [
        answer_of(text) == answer_of(pair.reference)
        for text, pair in zip(written, task.test, strict=True)
    ]
    return sum(right) / len(right)


def test_200_traces_teach_division_and_200_answers_do_not(make_env, tmp_path):
    """The experiment with a known answer: over 80 % exact with traces, near chance without.

    Chance is one over the divisor, on average. Answers alone may do as well as the last digit,
    which tells the remainder of 2 and, of 4, leaves two to choose from.
    """
    traced = right_answers(NUMBERS, make_env, tmp_path / "traces")
    bare = right_answers(replace(NUMBERS, traces=False), make_env, tmp_path / "bare")
    sys.stdout.write(f"right: {traced:.3f} with traces, {bare:.3f} without\n")
    chance, last_digit = (1 / 2 + 1 / 3 + 1 / 4) / 3, (1 + 1 / 3 + 1 / 2) / 3
    assert traced > 0.8
    assert chance - 0.1 < bare < last_digit + 0.05
