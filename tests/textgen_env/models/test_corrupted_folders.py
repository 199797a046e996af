"""A corrupted model's folder is one line of ours, or a model that writes tokens of its vocabulary.

Each corruption is loaded in a process of its own, with limits on its memory and time.
"""

import json
import os
import resource
import shutil
import signal
from pathlib import Path
from random import Random

import pytest
import torch

from tests.support.corruptions import chosen
from tests.support.pretrained import FAMILIES, TEXTS, WORDS, save_family
from textgen_env.generation.decoding import LogitsError, greedy
from textgen_env.models.huggingface.load import PretrainedError
from textgen_env.models.model_files import ModelFileError
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.subword import Tokenizer

OURS = (LogitsError, ModelFileError, PretrainedError)
MEMORY, SECONDS = 2**30, 60  # far above what a model of 80 KB needs, on a busy machine too
LONGEST = 2000  # characters of an error
RIGHT = "right"


def save_own(folder, kind):
    tokenizer = Tokenizer.from_words(WORDS)
    if kind == "recurrent":
        model = Recurrent(RecurrentConfig(tokenizer.vocab_size, width=8))
    else:
        model = Transformer(TransformerConfig(tokenizer.vocab_size, 8, 2, feed_forward=16))
    save_model(model.eval(), folder, tokenizer)


def save(kind, folder):
    if kind in FAMILIES:
        save_family(FAMILIES[kind], folder)
    else:
        save_own(folder, kind)


def use(folder):
    """Load a model and its tokenizer as commands do, and write with them."""
    tokenizer = load_tokenizer(folder)
    model = load_model(folder)
    try:
        source = encode_sources(TEXTS, tokenizer)
    except ValueError as error:
        assert "must consist of the tokenizer's words" in str(error)  # noqa: PT017
        return
    tokens = greedy(model, source, 4)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.vocab_size
    assert len(tokenizer.decode(tokens.tolist())) == len(TEXTS)


def outcome_of(folder):
    """Return what using the folder comes to, in words."""
    try:
        use(folder)
    except OURS as error:
        line = str(error)
        is_named = str(folder) in line or isinstance(error, LogitsError)
        is_right = is_named and "\n" not in line and len(line) < LONGEST and "alloc" not in line
        return RIGHT if is_right else f"said {line[:LONGEST]!r}"
    except BaseException as error:  # of whatever class: a traceback for the user
        return f"raised {error!r}"[:LONGEST]
    return RIGHT


def outcome_apart(folder):
    """Return the outcome in a process of its own, which may take little memory and time."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            signal.alarm(SECONDS)
            torch.set_num_threads(1)  # those of the parent are not there, and would be waited for
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.write(writer, json.dumps(outcome_of(folder)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(content) if content else f"died with the status {status}"


def check(kind, tmp_path, count, seed):
    """Assert that `count` corruptions of a folder of a kind come to what they must."""
    save(kind, tmp_path / "good")
    use(tmp_path / "good")
    wrong = {}
    for number, (name, apply) in enumerate(chosen(tmp_path / "good", count, seed)):
        folder = tmp_path / f"bad{number}"
        shutil.copytree(tmp_path / "good", folder)
        apply(folder, Random(number))
        outcome = outcome_apart(folder)
        if outcome != RIGHT:
            wrong[name] = outcome
    assert not wrong


@pytest.mark.parametrize("kind", ["transformer", "recurrent", "marian", "llama"])
def test_corrupted_folders(kind, tmp_path):
    check(kind, tmp_path, count=26, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["transformer", "recurrent", *FAMILIES])
def test_many_corrupted_folders(kind, seed, tmp_path):
    check(kind, tmp_path, count=250, seed=seed)
