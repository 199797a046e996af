"""Tests of exports to CTranslate2: the same greedy tokens as the model's."""

import pytest
import torch

from tests.support.export_models import (
    constant_transformer,
    sources,
    student_for,
    varied_transformer,
)
from textgen_env.generation.decoding import decode_all
from textgen_env.models.export.common import ExportError
from textgen_env.models.storage import load_tokenizer

pytest.importorskip("ctranslate2")
from textgen_env.models.export.ctranslate2 import (
    load_ctranslate2,
    save_ctranslate2,
)
from textgen_env.models.model_files import DIGESTS, ModelFileError


def test_greedy_tokens_are_the_same_in_float32(tmp_path):
    model, tokenizer = varied_transformer()
    save_ctranslate2(model, tokenizer, tmp_path, "float32")
    generate = load_ctranslate2(tmp_path)
    for longest, steps in ((12, 20), (700, 40)):  # its table of positions starts with 500 entries
        source = sources(40, longest)
        assert torch.equal(generate(source, steps), decode_all(model, source, steps))


def test_int8_is_near_and_leaves_the_model_as_it_was(tmp_path):
    model, tokenizer = varied_transformer()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_ctranslate2(model, tokenizer, tmp_path, "int8")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    source = sources(40)
    int8 = load_ctranslate2(tmp_path)(source, 20)[:, 0]
    float32 = decode_all(model, source, 20)[:, 0]
    assert (int8 == float32).float().mean() > 0.6


def test_padding_and_start_are_never_written(tmp_path):
    model, tokenizer = constant_transformer([0, 1, 7])
    for precision in ("float32", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        save_ctranslate2(model, tokenizer, folder, precision)
        written = load_ctranslate2(folder)(sources(2, 4), 5)
        assert torch.equal(written, torch.full((2, 5), 7))


def test_the_first_token_may_be_the_end(tmp_path):
    model, tokenizer = constant_transformer([2])
    save_ctranslate2(model, tokenizer, tmp_path, "float32")
    assert load_ctranslate2(tmp_path)(sources(2, 4), 3).tolist() == [[2, 0, 0]] * 2


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_a_student_with_a_pretrained_tokenizer_writes_the_same(name, tmp_path):
    pretrained = pytest.importorskip("tests.support.pretrained")
    pretrained.FAMILIES[name].tokenizer().save_pretrained(tmp_path / "teacher")
    tokenizer = load_tokenizer(tmp_path / "teacher")
    model, source = student_for(tokenizer)
    save_ctranslate2(model, tokenizer, tmp_path, "float32")
    assert torch.equal(load_ctranslate2(tmp_path)(source, 20), decode_all(model, source, 20))
    assert load_tokenizer(tmp_path).encode(["a w2"]) == tokenizer.encode(["a w2"])


def test_tokens_without_a_piece_are_written_too(tmp_path):
    model, tokenizer = constant_transformer([63])
    save_ctranslate2(model, tokenizer, tmp_path, "float32")
    written = load_ctranslate2(tmp_path)(sources(2, 4), 3)
    assert torch.equal(written, torch.full((2, 3), 63))


def test_a_truncated_model_is_reported(tmp_path):
    save_ctranslate2(*varied_transformer(), tmp_path, "float32")
    whole = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match=r"model\.bin must be as it was saved"):
        load_ctranslate2(tmp_path)
    (tmp_path / DIGESTS).unlink()
    with pytest.raises(ExportError, match="must hold a model for CTranslate2"):
        load_ctranslate2(tmp_path)


def test_a_beam_of_one_is_greedy_and_more_is_not(tmp_path):
    model, tokenizer = varied_transformer()
    save_ctranslate2(model, tokenizer, tmp_path, "float32")
    source = sources(40)
    greedy, beam = (load_ctranslate2(tmp_path, size)(source, 20) for size in (1, 4))
    assert not torch.equal(greedy, beam)


def test_the_tokenizer_is_read_here_too(tmp_path):
    model, tokenizer = varied_transformer()
    save_ctranslate2(model, tokenizer, tmp_path, "float32")
    assert load_tokenizer(tmp_path).encode(["w3 w5"]) == tokenizer.encode(["w3 w5"])
