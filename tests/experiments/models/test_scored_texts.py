"""Scores of `generate` are the model's own log-probabilities; a line is answered by a line."""

import io
import json
import os
import select
import sys
import threading

import pytest
import torch

from textgen_env.generation.decoding import greedy
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, save_model
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.models.scored_texts import (
    ScoredText,
    json_line,
    line_with_scores,
    text_length,
)

WORDS = Tokenizer.from_words(["ab", "c", "ä", "abc"])
CONTENT = "ab\nc\n\n ä c \nabc"
LINES = ["ab", "c", "", "ä c", "abc"]
TOKENS = 12
SECONDS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save a model that ends some of its texts."""
    torch.manual_seed(7)
    model = Recurrent(RecurrentConfig(WORDS.vocab_size, 16, 1, 1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    path = tmp_path_factory.mktemp("scored") / "model"
    save_model(model, path, WORDS)
    return path


@pytest.fixture
def lines_of(monkeypatch, folder):
    """Return a function from options of `generate` to the lines of its output."""

    def run(*options, content=CONTENT):
        output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        monkeypatch.setattr(sys, "stdout", output)
        main(["generate", str(folder), "--max-tokens", str(TOKENS), *map(str, options)])
        return output.buffer.getvalue().decode().split("\n")[:-1]

    return run


@torch.no_grad()
def reference_log_probs(folder, source, text_tokens):
    """Return the log-probability of each token in one pass of the model in float64."""
    model = load_model(folder).double()
    actions = torch.tensor([text_tokens])
    logits = model.sequence_logits(encode_sources([source], WORDS), actions)
    return logits.log_softmax(-1).gather(2, actions[..., None]).flatten()


def greedy_tokens(folder, source):
    model = load_model(folder)
    row = greedy(model, encode_sources([source], WORDS), TOKENS)[0].tolist()
    return row[: text_length(row, WORDS.special.end)]


def test_scores_are_the_sum_and_the_mean_of_the_tokens_log_probabilities(lines_of, folder):
    plain, scored = lines_of(), lines_of("--scores")
    assert len(scored) == len(plain) == len(LINES)
    for source, text, line in zip(LINES, plain, scored, strict=True):
        if not source:
            assert line == text == ""
            continue
        mean, total, same = line.split("\t", 2)
        expected = reference_log_probs(folder, source, greedy_tokens(folder, source))
        assert same == text
        assert float(total) == pytest.approx(float(expected.sum()), abs=1e-4)
        assert float(mean) == pytest.approx(float(expected.mean()), abs=1e-5)


def test_a_line_of_json_has_the_n_best_texts_of_the_beam(lines_of):
    objects = [
        json.loads(line) for line in lines_of("--json-lines", "--beam-size", 4, "--n-best", 3)
    ]
    best = lines_of("--beam-size", 4)
    assert [each["source"] for each in objects] == LINES
    lengths = {each["tokens"] for found in objects for each in found["texts"]}
    assert min(lengths) < TOKENS in lengths, "the test needs texts with an end and without one"
    for source, found, text in zip(LINES, objects, best, strict=True):
        if not source:
            assert found["texts"] == []
            continue
        means = [each["mean_log_prob"] for each in found["texts"]]
        assert len(means) == 3
        assert means == sorted(means, reverse=True)
        assert found["texts"][0]["text"].replace("\n", " ").strip() == text.strip()
        for each in found["texts"]:
            assert each["log_prob"] == pytest.approx(
                each["mean_log_prob"] * each["tokens"], abs=1e-4
            )


def test_scores_do_not_depend_on_the_batch(lines_of):
    whole, alone = (lines_of("--json-lines", "--batch-size", size) for size in (64, 1))
    for one, other in zip(map(json.loads, whole), map(json.loads, alone), strict=True):
        assert [each["text"] for each in one["texts"]] == [each["text"] for each in other["texts"]]


def test_a_text_is_written_as_json_or_in_one_line():
    text = ScoredText('a\n"ä"\tb', -3.0, 4)
    assert line_with_scores([text]) == '-0.750000\t-3.000000\ta "ä"\tb'
    assert json_line("ü", [text]) == (
        '{"source": "ü", "texts": [{"text": "a\\n\\"ä\\"\\tb", "mean_log_prob": -0.75, '
        '"log_prob": -3.0, "tokens": 4}]}'
    )
    assert line_with_scores([]) == ""


@pytest.mark.parametrize(("row", "length"), [([5, 2, 0, 0], 2), ([5, 6, 7], 3), ([2], 1)])
def test_the_end_token_counts(row, length):
    assert text_length(row, 2) == length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-best", "2"], "--n-best must be 1 where a line is one text, got 2: add --json-lines"),
        (["--n-best", "0"], "--n-best must be at least 1, got 0"),
        (
            ["--n-best", "3", "--json-lines", "--beam-size", "2"],
            "--n-best must be at most --beam-size (2), got 3: raise --beam-size",
        ),
        (["--scores", "--draft", "x"], "--draft must be left out where scores are written, got x"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(lines_of, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        lines_of(*options)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_model_of_another_program_has_no_scores(tmp_path, capsys):
    (tmp_path / "model.bin").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["generate", str(tmp_path), "--scores"])
    assert f"for scores, got {tmp_path} in that of ctranslate2" in capsys.readouterr().err


def test_a_terminal_is_answered_line_by_line(folder, monkeypatch, lines_of):
    expected = lines_of(content="ab\n\nc\n")
    outer, terminal = os.openpty()
    reading, writing = os.pipe()
    with (
        os.fdopen(terminal, "r") as stdin,
        os.fdopen(writing, "w") as stdout,
        os.fdopen(reading, "r") as answers,
    ):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        words = ["generate", str(folder), "--max-tokens", str(TOKENS)]
        thread = threading.Thread(target=main, args=[words])
        thread.start()
        found = []
        for line in (b"ab\n", b"\n", b"c\n"):
            os.write(outer, line)
            assert select.select([answers], [], [], SECONDS)[0], "the line is not answered"
            found.append(answers.readline().removesuffix("\n"))
        os.write(outer, b"\x04")
        thread.join(SECONDS)
        assert not thread.is_alive()
    os.close(outer)
    assert found == expected
