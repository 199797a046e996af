"""Tests that the compared engines write the same texts."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("ctranslate2")
from textgen_experiments.benchmarks.peers.decode import (
    GENERATE,
    GREEDY,
    marian_writers,
    teacher_writers,
)
from textgen_experiments.benchmarks.peers.models import Size

SIZE = Size(vocab_size=60, width=64, teacher_layers=2, batch_size=9, source_tokens=7, max_steps=12)


def test_a_marian_writes_the_same_by_generate_and_here(tmp_path):
    sides = marian_writers(tmp_path, SIZE, "float32")
    counts = {name: side() for name, side in sides.items()}
    theirs, ours = (torch.cat(sides[name].written) for name in (GENERATE, GREEDY))
    assert torch.equal(theirs, ours)
    assert len(ours.unique(dim=0)) > 1, "the test wants texts that differ"
    assert counts[GREEDY] == int((ours != 0).sum())


def test_the_shipped_teacher_writes_the_same_in_every_engine(tmp_path):
    sides = teacher_writers(tmp_path, 2, "float32")
    assert list(sides) == [GENERATE, "CTranslate2", GREEDY]
    counts = {side(): name for name, side in sides.items()}
    assert len(counts) == 1, counts
    ours = torch.cat(sides[GREEDY].written)
    for name, side in sides.items():
        assert torch.equal(torch.cat(side.written), ours), name


def test_ctranslate2_is_left_out_in_bfloat16(tmp_path):
    assert list(teacher_writers(tmp_path, 1, "bfloat16")) == [GENERATE, GREEDY]
