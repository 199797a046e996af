"""Random options of the command line become a record, or one line and the code 2."""

import contextlib
import io
from dataclasses import is_dataclass

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from textgen_experiments.command_line.parse import parse

COMMANDS = {
    "generate": ["model", "--beam-size", "--batch-size", "--max-tokens", "--precision"],
    "evaluate": ["run", "--baseline", "--beam-size", "--batch-size"],
    "export": ["model", "--format", "--precision", "--sentences", "--least-same", "--output"],
    "benchmark": ["model", "--batch-size", "--precisions"],
    "study": ["--output", "--agents", "--seeds"],
    "train": [
        *("--output", "--agent", "--task", "--student", "--teacher", "--lora-rank", "--metric"),
        *("--learner.updates", "--learner.clip", "--learner.seed", "--agent.beta.rate"),
        *("--student.width", "--student.dropout", "--task.max-words", "--validation-pairs"),
    ],
}
WORDS = st.one_of(
    st.sampled_from(["0", "1", "-1", "2.5", "nan", "inf", "-inf", "1e400", "9" * 5000, "1" * 30]),
    st.sampled_from(["", " ", "mle", "copy", "hf", "float32", "None", "True", "--", "-h", "./x"]),
    st.sampled_from(["ä", "\ud800", "\x00", "[/de]", "--plugin", "http://h/v1", "x" * 5000]),
)


def parsed(arguments):
    """Return the record, or the text with which the command ends."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(text):
            return parse(arguments), ""
    except SystemExit as stop:
        return stop.code, text.getvalue()


@pytest.mark.parametrize("name", COMMANDS)
def test_random_options_become_a_record_or_one_line(name):
    word = st.sampled_from(COMMANDS[name]) | WORDS

    @seed(0)
    @settings(max_examples=3 if name == "train" else 8, deadline=None, database=None)
    @given(st.lists(word, max_size=6))
    def check(words):
        record, text = parsed([name, *words])
        if is_dataclass(record):
            return
        assert record in (0, 2)
        assert text.count("\n") == (record == 2)
        assert text.startswith("textgen: ") == (record == 2)

    check()
