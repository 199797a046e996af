"""Standard input and output of the command `generate`."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.models import generate as command
from textgen_experiments.runs.pipes import PIPE_CLOSED

BYTES = Tokenizer.train([], vocab_size=259)


@pytest.fixture
def echo(monkeypatch):
    """Return a function from standard input to standard output, by a model that writes `answer`."""

    def run(content, answer=None):
        def write_rows(source, max_tokens):
            del max_tokens
            if answer is None:
                return source
            return source.new_tensor(BYTES.encode([answer] * len(source)))

        output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(command, "model_folder", lambda folder: folder)
        monkeypatch.setattr(command, "load_tokenizer", lambda folder: BYTES)
        monkeypatch.setattr(command, "load_generator", lambda *_, **__: write_rows)
        stdin = None if content is None else io.TextIOWrapper(io.BytesIO(content), encoding="ascii")
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", output)
        main(["generate", "model", "--batch-size", "3"])
        return output.buffer.getvalue().decode()

    return run


def complaint(capsys, run, *arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_standard_input_follows_the_rules_of_data_files(echo):
    assert echo("\ufeffä\r\n\n b\u2028c \nd".encode()) == "ä\n\nb\u2028c\nd\n"
    assert echo(b"") == echo("\ufeff".encode()) == ""


@pytest.mark.parametrize("answer", ["one\ntwo", "one\r\ntwo", "one\rtwo", "one\n\ntwo"])
def test_a_text_with_line_ends_is_one_line(echo, answer):
    assert echo(b"a\nb\n\nc\nd", answer) == "one two\none two\n\none two\none two\n"


def test_bytes_that_are_not_utf_8_are_one_line_with_their_number(echo, capsys):
    message = complaint(capsys, echo, b"a\nb\xe4\n")
    assert message.startswith("textgen: standard input, line 2: a line must be UTF-8, got the byte")


def test_closed_standard_input_is_one_line(echo, capsys):
    assert "standard input must be open, got a closed one" in complaint(capsys, echo, None)


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@seed(0)
@given(content=st.binary(max_size=40) | st.text("aä\r\n\ufeff ").map(str.encode))
def test_any_bytes_are_answered_line_by_line_or_one_error(echo, content):
    try:
        expected = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        with pytest.raises(SystemExit, match="2"):
            echo(content)
        return
    lines = expected.split("\n")[: None if expected.rpartition("\n")[2] else -1]
    answers = echo(content).split("\n")
    assert answers.pop() == ""
    assert len(answers) == len(lines)
    assert [bool(answer) for answer in answers] == [bool(line.strip()) for line in lines]


@pytest.mark.parametrize("arguments", [["generate", "MODEL", "--batch-size", "1"], ["--help"]])
@pytest.mark.parametrize("buffered", [False, True])
def test_a_broken_pipe_ends_quietly(arguments, buffered, tmp_path):
    model = Recurrent(RecurrentConfig(BYTES.vocab_size, 8, 1, 1)).eval()
    save_model(model, tmp_path / "model", BYTES)
    words = [str(tmp_path) if word == "MODEL" else word for word in arguments]
    program = "from textgen_experiments.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"},
    ) as process:
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"a\n" * 3)
            process.stdin.close()
        complaints = process.stderr.read()
    assert complaints == b""
    assert process.returncode == PIPE_CLOSED


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("command", [["--help"], ["--version"]])
def test_a_full_standard_output_is_one_line(command):
    code = "from textgen_experiments.cli import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )
    assert done.returncode == 2
    assert done.stderr.startswith("textgen: standard output must be writable, got: No space left")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def translate(monkeypatch):
    """Return a function from the options of `generate` and standard input to standard output."""

    def run(*options, content=b"ab\nc\n\nabc"):
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        monkeypatch.setattr(sys, "stdout", output)
        main(["generate", *map(str, options), "--max-tokens", "12"])
        return output.buffer.getvalue()

    return run


@pytest.fixture
def models(tmp_path):
    """Save two models of one tokenizer and one of another, and return their folders."""
    torch.manual_seed(0)
    for name, width, tokenizer in (
        ("model", 8, BYTES),
        ("draft", 6, BYTES),
        ("other", 8, Tokenizer.from_words(["ab", "c"])),
    ):
        model = Recurrent(RecurrentConfig(tokenizer.vocab_size, width, 1, 1)).eval()
        save_model(model, tmp_path / name, tokenizer)
    return tmp_path / "model", tmp_path / "draft", tmp_path / "other"


def test_with_a_draft_the_texts_are_the_models_own(translate, models):
    model, draft, _ = models
    alone = translate(model)
    assert len(alone.splitlines()) == 4
    for count in (1, 5):
        assert translate(model, "--draft", draft, "--draft-tokens", count) == alone


def test_a_draft_with_another_tokenizer_is_one_line(translate, models, capsys):
    model, _, other = models
    message = complaint(capsys, translate, model, "--draft", other)
    assert f"draft must have the tokenizer of {model}, got {other} with another" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam-size", "4"], "--beam-size must be 1 with a draft, got 4"),
        (["--draft-tokens", "0"], "--draft-tokens must be at least 1, got 0"),
    ],
)
def test_settings_that_no_draft_has_are_one_line(translate, models, capsys, options, message):
    assert message in complaint(capsys, translate, models[0], "--draft", models[1], *options)


def test_texts_of_several_processes_stand_in_the_order_of_the_lines(translate, models):
    content = "".join(f"{'ab' * (i % 7)}\n" for i in range(23)).encode()
    alone = translate(models[0], "--batch-size", 2, content=content)
    assert len(alone.splitlines()) == 23
    found = translate(models[0], "--batch-size", 2, "--processes", 2, content=content)
    assert found == alone


def test_no_process_at_all_is_one_line(translate, models, capsys):
    message = complaint(capsys, translate, models[0], "--processes", "0")
    assert "--processes must be at least 1, got 0" in message
