"""Runs whose teacher is a server, through the command line."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.remote_server import EncoderDecoder, Server
from tests.support.variants import mostly_slow
from tests.textgen_env.experts.test_remote import WORDS, Lively, refuse
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.runs.folder import read_config

SHORT = [
    *("--learner.batch-size", "4", "--learner.updates", "6", "--learner.evaluate-every", "2"),
    *("--student.width", "16", "--precision", "float32", "--task.limits.max-tokens", "8"),
]


@pytest.fixture
def server():
    tokenizer = Tokenizer.from_words(WORDS)
    (separator,) = tokenizer.encode(["=>"])[0]
    with Server(EncoderDecoder(Lively(tokenizer.vocab_size), separator)) as server:
        yield server


@pytest.fixture
def run(server, tmp_path):
    """Return a function from name, agent and options to the folder of a run."""
    tokenizer = Tokenizer.from_words(WORDS)
    model = Recurrent(RecurrentConfig(tokenizer.vocab_size, 16))
    save_model(model, tmp_path / "model", tokenizer)
    texts = [f"{a} {b}" for a in "abcdef" for b in "abcdef"]
    pairs = [json.dumps({"source": text, "reference": text[::-1]}) for text in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))

    def run(name, agent, *options):
        folder, pairs = tmp_path / name, str(tmp_path / "pairs.jsonl")
        files = ["--task.train", pairs, "--task.validation", pairs, "--task.test", pairs]
        asked = [
            *("--teacher", server.url, "--server.model", "small", "--server.k", "4"),
            *("--server.tokenizer", str(tmp_path / "model"), "--server.prompt", "{source} =>"),
            *("--server.cache", str(tmp_path / "labels.sqlite"), "--server.retries", "0"),
        ]
        main(
            [
                *("train", "--task", "text", *files, *SHORT, *asked, "--agent", agent),
                *("--output", str(folder), *options),
            ]
        )
        return folder

    return run


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def last_line(capsys):
    """Before it, a run tells of precision and data."""
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("textgen: ")
    return line


OPTIONS = {
    "imitkd": ["--agent.batches_per_rollout", "1"],
    "seqkd": ["--agent.beam-size", "2"],
    "distillm": ["--agent.label.k", "4", "--agent.student-fraction", "1"],
    "imitkd_full": ["--agent.label.k", "4"],
    "gkd": ["--agent.label.k", "4"],
    "kid": ["--agent.label.k", "4"],
    "aggrevate": [],
}


@pytest.mark.parametrize("agent", mostly_slow(OPTIONS, "imitkd", "imitkd_full"))
def test_agents_learn_from_a_server_and_a_second_run_asks_nothing(run, server, agent):
    first = run("first", agent, *OPTIONS[agent])
    asked = len(server.asked)
    outcome = json.loads((first / "outcome.json").read_text())
    assert asked > 0
    assert outcome["teacher_tokens_queried"] > 0
    second = run("second", agent, *OPTIONS[agent])
    assert len(server.asked) == asked
    assert all(torch.equal(weights(second)[name], w) for name, w in weights(first).items())
    again = json.loads((second / "outcome.json").read_text())
    assert again["teacher_tokens_queried"] == outcome["teacher_tokens_queried"]


@pytest.mark.parametrize("agent", ["imitkd", "seqkd"])
def test_a_run_that_lost_its_server_goes_on_and_asks_nothing_twice(run, server, agent, capsys):
    options = [*OPTIONS[agent], "--server.batch-size", "3"]
    server.faults.extend([lambda _: False] * 4 + [refuse(503)])
    with pytest.raises(SystemExit) as stop:
        run("run", agent, *options)
    assert stop.value.code == 2
    assert "got status 503" in last_line(capsys)
    lost = server.asked.pop()
    folder = run("run", agent, *options)
    asked = [tuple(prompt) for body in server.asked for prompt in body["prompt"]]
    assert len(asked) == len(set(asked))
    assert {tuple(prompt) for prompt in lost["prompt"]} <= set(asked)
    other = run("other", agent, *options)
    assert all(torch.equal(weights(other)[name], w) for name, w in weights(folder).items())


def test_a_run_goes_on_after_its_server_has_moved(run, server):
    folder = run("run", "imitkd", "--agent.batches_per_rollout", "1")
    (folder / "outcome.json").unlink()
    again = run("run", "imitkd", "--agent.batches_per_rollout", "1", "--server.timeout", "7")
    assert (again / "outcome.json").exists()
    assert read_config(folder).experiment.server.url == server.url


@pytest.mark.parametrize("agent", ["f_distill", "atkd", "skd", "dagger"])
def test_who_needs_more_than_it_tells_is_refused_before_training(run, server, agent, capsys):
    with pytest.raises(SystemExit) as stop:
        run("run", agent)
    assert stop.value.code == 2
    assert "the expert must give the whole distribution" in last_line(capsys)
    assert server.asked == []


def test_what_is_missing_is_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--output", str(tmp_path / "x"), "--teacher", "http://localhost:1/v1"])
    assert stop.value.code == 2
    assert "--server.model" in last_line(capsys)
    with pytest.raises(SystemExit):
        main(["train", "--output", str(tmp_path / "x"), "--teacher=ftp://localhost"])


def test_a_run_with_a_server_is_evaluated_without_it(run, server, capsys):
    folder = run("run", "imitkd", "--agent.batches_per_rollout", "1")
    asked = len(server.asked)
    main(["evaluate", str(folder)])
    (row,) = json.loads((folder / "results.json").read_text())["rows"]
    assert row["agent"] == "imitkd"
    assert len(server.asked) == asked
