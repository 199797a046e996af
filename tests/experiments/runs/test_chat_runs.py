"""Runs with an instruction model as the teacher, from conversations to an answer."""

import io
import json
import sys

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.chats import LLAMA
from tests.support.remote_server import Causal, Server
from textgen_agents.evaluation.exposure_bias import written_by
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tokenizers.chat import CHAT, ChatTokenizer
from textgen_env.types import Examples, Writer
from textgen_experiments.cli import main


def save_instruction_model(folder, family=LLAMA, seed=0, width=32):
    """Write a random Llama with a tokenizer for conversations."""
    backend = family.tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(backend), hidden_size=width, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=160,
        bos_token_id=backend.bos_token_id, eos_token_id=backend.eos_token_id, pad_token_id=0,
        initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    backend.save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    for split, words in (("train", "abcdefgh"), ("validation", "ij"), ("test", "kl")):
        records = [
            {"messages": [{"role": "user", "content": f"say {word}"},
                          {"role": "assistant", "content": word}]}
            for word in words
        ]  # fmt: skip
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{split}.jsonl").write_text(text)
    return tmp_path


def train(files, name, *options):
    named = [
        word
        for split in ("train", "validation", "test")
        for word in (f"--task.{split}", str(files / f"{split}.jsonl"))
    ]
    folder = files / name
    main(
        [
            *("train", "--task", "text", *named, "--task.messages-field", "messages"),
            *("--task.limits.max-tokens", "120"),
            *(() if "--server.model" in options else ("--teacher", str(files / "teacher"))),
            *("--output", str(folder), "--precision", "float32", "--learner.batch-size", "4"),
            *("--learner.updates", "2", "--learner.evaluate-every", "1", *options),
        ]
    )
    return folder


def test_teacher_and_student_read_what_transformers_reads(files):
    """The student's logits are those of the bare model after the templated prompt."""
    save_instruction_model(files / "teacher")
    save_instruction_model(files / "start", seed=1, width=16)
    options = ("--student-init", str(files / "start"), "--agent", "imitkd_full")
    folder = train(files, "run", *options)
    model, tokenizer = load_model(folder / "model"), load_tokenizer(folder / "model")
    assert isinstance(tokenizer, ChatTokenizer)
    messages = [{"role": "user", "content": "say k"}]
    ids = tokenizer.backend.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    own = torch.tensor([[*tokenizer.encode(["say k"])[0], tokenizer.special.end]])
    bare = LlamaForCausalLM.from_pretrained(folder / "model").eval()
    with torch.no_grad():
        theirs = bare(input_ids=torch.tensor([ids])).logits[0, -1]
        start = torch.tensor([tokenizer.special.start])
        mine, _ = model.step(start, model.start(own, 4))
    torch.testing.assert_close(mine[0, : len(theirs)], theirs, rtol=1e-4, atol=1e-4)


def test_a_small_student_answers_lines_as_messages_of_the_user(files, monkeypatch, capsys):
    save_instruction_model(files / "teacher")
    folder = train(files, "run", "--agent", "seqkd", "--agent.beam-size", "1")
    assert (folder / "model" / CHAT).is_file()
    tokenizer, model = load_tokenizer(folder / "model"), load_model(folder / "model")
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"say k\n")))
    main(["generate", str(folder), "--max-tokens", "8"])
    line = capsys.readouterr().out.rstrip("\n")
    source = torch.tensor([[*tokenizer.encode(["say k"])[0], tokenizer.special.end]])
    none = torch.full((1, 1), tokenizer.special.pad)
    written = written_by(model, Examples(source, none), 8, writer=Writer.STUDENT).actions
    assert tokenizer.decode(written.tolist()) == [line]


def test_a_student_that_ends_texts_otherwise_is_refused(files, capsys):
    save_instruction_model(files / "teacher")
    start = save_instruction_model(files / "start", seed=1)
    settings = json.loads((start / "tokenizer_config.json").read_text())
    settings["eos_token"] = "<|end_header_id|>"
    (start / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):
        train(files, "run", "--student-init", str(start))
    error = capsys.readouterr().err
    assert "--student-init must end texts with the token that its teacher ends them with" in error


def test_a_teacher_without_a_template_is_refused(files, capsys):
    save_instruction_model(files / "teacher")
    for path in (files / "teacher").glob("chat_template*"):
        path.unlink()
    with pytest.raises(SystemExit):
        train(files, "run")
    assert "must have a chat template to encode messages, got none" in capsys.readouterr().err


def served(files, server, *options):
    """Return the options of a teacher behind HTTP."""
    return (
        *("--teacher", server.url, "--server.model", "small", "--server.k", "10"),
        *("--server.tokenizer", str(files / "teacher"), "--server.retries", "0"),
        *("--server.cache", str(files / "labels.sqlite"), *options),
    )


def test_a_server_is_asked_about_what_transformers_reads(files):
    save_instruction_model(files / "teacher")
    bare = LlamaForCausalLM.from_pretrained(files / "teacher").eval()
    tokenizer = load_tokenizer(files / "teacher").backend
    with Server(Causal(bare, tokenizer.eos_token_id)) as server:
        train(files, "run", *served(files, server, "--agent", "word_kd"))
        prompts = [prompt for body in server.asked for prompt in body["prompt"]]
        with pytest.raises(SystemExit):
            train(files, "other", *served(files, server, "--server.prompt", "Say {source}"))
    templated = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"say {word}"}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for word in "abcdefgh"
    ]
    assert prompts
    assert all(any(prompt[: len(ids)] == ids for ids in templated) for prompt in prompts)
