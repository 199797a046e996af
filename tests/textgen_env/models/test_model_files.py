"""Tests that damaged folders are refused in one line, at once and before memory is taken."""

import hashlib
import json
import math
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.pretrained import FAMILIES, save_family
from textgen_env.models.model_files import DIGESTS, ModelFileError
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tokenizers.subword import Tokenizer

VERSES = Path(__file__).parents[3] / "experiments" / "teachers" / "verses"
HUGE = (2**20, 2**31, 2**62, 2**64, 10**30)
NEGATIVE = (-1, -(2**40))


@pytest.fixture
def own(tmp_path):
    """Return the folder of a small Transformer."""
    config = TransformerConfig(20, width=8, num_heads=2, feed_forward=16)
    save_model(Transformer(config), tmp_path / "own", Tokenizer.from_words(("one", "two")))
    return tmp_path / "own"


@pytest.fixture(params=["marian", "llama", "t5"])
def pretrained(request, tmp_path):
    """Return the folder of a small model of `transformers`."""
    return save_family(FAMILIES[request.param], tmp_path / request.param)


def change(folder, name, value):
    """Set one field of the configuration in `folder`."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def assert_refused(folder, match=None):
    """Load the folder, and expect one line within seconds."""
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=match) as caught:
        load_model(folder)
    assert time.perf_counter() - begun < 10
    assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize("value", [*HUGE, *NEGATIVE, 0])
@pytest.mark.parametrize(
    "name",
    ["vocab_size", "width", "num_heads", "feed_forward", "num_encoder_layers"],
)
def test_sizes_that_the_weights_do_not_have_are_refused(own, name, value):
    change(own, name, value)
    assert_refused(own, "config.json")


@pytest.mark.parametrize("value", [*HUGE, *NEGATIVE, 0, 1.5, "8"])
def test_sizes_of_pretrained_models_are_refused(pretrained, value):
    config = json.loads((pretrained / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "d_model", "num_hidden_layers", "encoder_layers")
    for name in [*sizes, "num_attention_heads", "d_ff", "intermediate_size"]:
        if name in config:
            change(pretrained, name, value)
            assert_refused(pretrained)
            change(pretrained, name, config[name])
    load_model(pretrained)


@pytest.mark.parametrize("token", [-1, 20, 2**64])
@pytest.mark.parametrize("name", ["pad", "start", "end"])
def test_special_tokens_outside_the_vocabulary_are_refused(own, name, token):
    special = json.loads((own / "config.json").read_text())["special"]
    change(own, "special", {**special, name: token})
    assert_refused(own, f"special.{name} must be from 0 to vocab_size - 1, got {token}")


def test_first_tokens_of_pretrained_models_outside_the_vocabulary_are_refused(tmp_path):
    folder = save_family(FAMILIES["marian"], tmp_path / "marian")
    change(folder, "decoder_start_token_id", 10**6)
    assert_refused(folder, "decoder_start_token_id must be from 0 to")


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/stdin"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", DIGESTS])
def test_links_to_devices_are_refused(own, name, target):
    (own / name).unlink()
    (own / name).symlink_to(target)
    assert_refused(own, "must be an existing file")


def test_pipes_are_refused(pretrained, own):
    for folder in (pretrained, own):
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
        assert_refused(folder, "must be an existing file, got something else")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_that_is_a_device_is_refused(pretrained, name):
    (pretrained / name).unlink(missing_ok=True)
    (pretrained / name).symlink_to("/dev/zero")
    with pytest.raises(ModelFileError, match=f"{name} must be an existing file, got something"):
        load_tokenizer(pretrained)


def change_json(path, place, value):
    """Set the value at a place, a tuple of names, of a JSON file."""
    content = json.loads(path.read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("identity", [40, 2**20, 2**31])
def test_ids_outside_of_the_vocabulary_are_refused(own, identity, tmp_path):
    llama = save_family(FAMILIES["llama"], tmp_path / "llama")
    for folder, piece in ((own, "one"), (llama, "w3")):
        change_json(folder / "tokenizer.json", ("model", "vocab", piece), identity)
        with pytest.raises(ModelFileError, match=rf"ids must be below \d+, .*, got {identity}"):
            load_tokenizer(folder)


def test_ids_around_a_source_outside_of_the_vocabulary_are_refused(tmp_path):
    folder = save_family(FAMILIES["marian"], tmp_path / "marian")
    place = ("post_processor", "special_tokens", "</s>", "ids")
    change_json(folder / "tokenizer.json", place, [2**20])
    assert_refused(folder, "ids around a source must be below 28, got 1048576")


def test_a_panic_of_the_library_is_an_error(tmp_path):
    folder = save_family(FAMILIES["llama"], tmp_path / "llama")
    change_json(folder / "tokenizer.json", ("post_processor", "special_tokens"), {})
    assert_refused(folder, "got PanicException: no entry found for key")


def test_a_model_with_other_tokens_than_its_tokenizer_is_refused(own):
    change(own, "special", {"pad": 1, "start": 0, "end": 2})
    with pytest.raises(ModelFileError, match="must have a model with the tokenizer's special tok"):
        load_tokenizer(own)
    Tokenizer.from_words([f"w{index}" for index in range(18)]).save(own / "tokenizer.json")
    with pytest.raises(ModelFileError, match="tokenizer of at most the model's 20 pieces, got one"):
        load_tokenizer(own)


@pytest.mark.parametrize("value", [-0.1, 3, 2**64, math.nan])
@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "dropout_rate"])
def test_shares_outside_of_0_to_1_are_refused(pretrained, name, value):
    change(pretrained, name, value)
    assert_refused(pretrained, rf"{name} must be in \[0, 1\], got")


@pytest.mark.parametrize("value", [math.nan, 1.5, "x", [1], True])
def test_first_tokens_of_another_kind_are_refused(tmp_path, value):
    folder = save_family(FAMILIES["t5"], tmp_path / "t5")
    change_json(folder / "generation_config.json", ("decoder_start_token_id",), value)
    assert_refused(folder, "decoder_start_token_id must be from 0 to 32, a token of the vocab")


def resave(folder, name, change_weight):
    weights = load_file(folder / "model.safetensors")
    weights[name] = change_weight(weights[name]).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / DIGESTS).unlink(missing_ok=True)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(own, pretrained, dtype):
    for folder in (own, pretrained):
        weights = load_file(folder / "model.safetensors")
        name = max(weights, key=lambda name: weights[name].numel())
        resave(folder, name, lambda weight: weight.to(dtype))
        assert_refused(folder, rf"must have weights in one of F16, BF16, F32, F64, got {name} in")


def test_a_tensor_of_another_shape_is_named(pretrained):
    weights = load_file(pretrained / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    resave(pretrained, name, lambda weight: weight[:-1])
    assert_refused(pretrained, rf"must fit .*config\.json, which means {name} of shape")


def test_a_size_that_the_files_have_no_room_for_is_refused_before_memory_is_taken(tmp_path):
    folder = save_family(FAMILIES["marian"], tmp_path / "marian")
    change(folder, "max_position_embeddings", 2**26)
    assert_refused(folder, r"must be at most \d+, which the weights beside it have room for")


def test_nothing_is_warned_of_while_a_folder_is_refused(tmp_path, capfd):
    folder = save_family(FAMILIES["llama"], tmp_path / "llama")
    change(folder, "num_hidden_layers", 3)
    capfd.readouterr()
    assert_refused(folder, "no weights for model.layers.2")
    assert capfd.readouterr() == ("", "")


def test_large_and_deep_configurations_are_refused(own):
    (own / "config.json").write_text('{"a": "' + "x" * 1_000_000 + '"}')
    assert_refused(own, "must have at most 1,000,000 bytes, got 1,000,009")
    (own / "config.json").write_text("[" * 200_000)
    assert_refused(own, "must be JSON")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(own, pretrained, value):
    for folder in (own, pretrained):
        weights = load_file(folder / "model.safetensors")
        name = max(weights, key=lambda name: weights[name].numel())
        weights[name].view(-1)[3] = value
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / DIGESTS).unlink(missing_ok=True)
        assert_refused(folder, "must have finite weights, got NaN or infinity in")


def test_a_flipped_bit_is_noticed(own, pretrained):
    save_model(load_model(pretrained), pretrained.with_name("again"), load_tokenizer(pretrained))
    for folder in (own, pretrained.with_name("again")):
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        assert_refused(folder, f"must be as it was saved, with the digest in .*{DIGESTS}, got ")
        (folder / DIGESTS).unlink()
        load_model(folder)


def test_digests_are_those_of_sha256sum(own):
    digest = hashlib.sha256((own / "model.safetensors").read_bytes()).hexdigest()
    assert (own / DIGESTS).read_text() == f"{digest}  model.safetensors\n"


@pytest.mark.parametrize("content", ["x", "0" * 64, "0" * 64 + "  ../model.safetensors", "\0"])
def test_digests_that_are_none_are_refused(own, content):
    (own / DIGESTS).write_text(content)
    assert_refused(own, DIGESTS)


def test_the_shipped_teacher_has_a_digest():
    digest = hashlib.sha256((VERSES / "model.safetensors").read_bytes()).hexdigest()
    assert (VERSES / DIGESTS).read_text() == f"{digest}  model.safetensors\n"


JSON_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]),
    st.just({}), st.sampled_from([*HUGE, *NEGATIVE]),
)  # fmt: skip


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), value=JSON_VALUES)
def test_any_change_of_a_configuration_is_refused_in_one_line_or_loads(own, data, value):
    path = own / "config.json"
    before = path.read_text()
    name = data.draw(st.sampled_from(sorted(json.loads(before))))
    change(own, name, value)
    try:
        loaded = load_model(own)
        assert loaded.vocab_size == 20
        assert all(torch.isfinite(weight).all() for weight in loaded.parameters())
    except ModelFileError:
        pass
    finally:
        path.write_text(before)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    name=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", DIGESTS]),
    place=st.integers(0, 400),
    byte=st.integers(0, 255),
    length=st.integers(0, 400),
)
def test_any_damaged_byte_is_refused_in_one_line_or_loads(own, name, place, byte, length):
    path = own / name
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[place % len(before)] = byte
    path.write_bytes(damaged if byte % 2 else damaged[:length])
    try:
        load_model(own)
        load_tokenizer(own)
    except ModelFileError:
        pass
    finally:
        path.write_bytes(before)
