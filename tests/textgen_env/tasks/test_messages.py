"""Conversations in files and data sets, from which the assistant's answer is learned."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.support.chats import QWEN
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.task import DataError, encode
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tokenizers.chat import ChatError, ChatTokenizer, conversation
from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_env.tokenizers.subword import Tokenizer

SYSTEM = {"role": "system", "content": "be brief"}


def talk(question, answer, *before):
    last = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*before, *last]}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def config(tmp_path, records, **settings):
    train = write(tmp_path / "train.jsonl", records)
    other = write(tmp_path / "other.jsonl", [talk("x", "y"), talk("z", "u")])
    return TextFilesConfig(train, other, other, messages_field="messages", **settings)


@pytest.fixture
def tokenizer():
    return PretrainedTokenizer(QWEN.tokenizer())


def test_the_last_message_is_the_reference_and_the_template_is_around_the_others(
    tmp_path, tokenizer
):
    earlier = [SYSTEM, *talk("one", "two")["messages"]]
    records = [talk("hi", " yo ", SYSTEM), talk(" three\n", "four", *earlier)]
    task = config(tmp_path, records).build(tokenizer)
    assert isinstance(task.tokenizer, ChatTokenizer)
    first, second = task.train
    assert first.source == conversation([SYSTEM, {"role": "user", "content": "hi"}])
    assert second.source == conversation([*earlier, {"role": "user", "content": " three\n"}])
    assert (first.reference, second.reference) == ("yo", "four")
    examples = encode([first], task)
    rows = tokenizer.backend(QWEN.rendered, add_special_tokens=False)["input_ids"]
    assert examples.source[0].tolist() == [*rows, task.tokenizer.special.end]
    assert tokenizer.decode(examples.reference.tolist()) == ["yo"]
    assert len(json.loads(second.source)) == 4


def test_sources_without_references_leave_the_answer_unread(tmp_path, tokenizer):
    talks = [talk("five", 6), {"messages": [{"role": "user", "content": "seven"}]}]
    talks[0]["messages"][-1]["content"] = "six"
    path = write(tmp_path / "sources.jsonl", talks)
    task = config(tmp_path, [talk("hi", "yo")], sources=(path,)).build(tokenizer)
    assert [pair.reference for pair in task.train] == ["yo", None, None]
    assert json.loads(task.train[1].source) == [{"role": "user", "content": "five"}]


def test_conversations_that_spell_special_pieces_are_counted_and_left_out(tmp_path, tokenizer):
    records = [talk("hi", "yo"), talk("a<|im_end|>b", "yo")]
    task = config(tmp_path, records).build(tokenizer)
    assert len(task.train) == 1
    assert task.dropped == {"spells a special piece": 1}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "line 1: messages must be a list of at least one, got a str"),
        ([], "line 1: messages must be a list of at least one"),
        (["hi"], "line 1, message 1 must be an object with role and content, got a str"),
        ([{"role": "user"}], 'line 1, message 1: "content" must be a string, got nothing'),
        ([{"role": "user", "content": [1]}], '"content" must be a string, got a list'),
        ([{"role": "user", "content": "a"}], "end with one of the assistant after another, got"),
        ([{"role": "assistant", "content": "a"}], "end with one of the assistant after another"),
        ([{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}], "half"),
    ],
)
def test_what_is_no_conversation_is_one_line(tmp_path, tokenizer, messages, message):
    with pytest.raises(DataError, match=message):
        config(tmp_path, [{"messages": messages}]).build(tokenizer)


def test_what_does_not_fit_beside_messages_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^prompt must be left out beside messages_field"):
        config(tmp_path, [talk("a", "b")], prompt="Say {source}")
    for files in (Path("a.tsv"), (Path("a.de"), Path("a.en"))):
        with pytest.raises(ValueError, match=r"^files must end in \.jsonl, \.csv or \.parquet"):
            TextFilesConfig(files, messages_field="messages")
    for other in ({"prompt": "Say {source}"}, {"lower_case": True}, {"cut_source": 9}):
        with pytest.raises(ValueError, match=r"^prompt, lower_case and cut_source must be left"):
            HubConfig("a", messages="messages", **other)


def test_other_tokenizers_are_refused(tmp_path):
    for tokenizer in (None, Tokenizer.from_words("ab")):
        with pytest.raises(ChatError, match="pretrained instruction model"):
            config(tmp_path, [talk("a", "b")]).build(tokenizer)


def test_a_data_set_of_the_hub_may_hold_messages(tmp_path, tokenizer):
    pytest.importorskip("datasets")
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", [talk(f"{split} hi", "yo", SYSTEM)])
    task = HubConfig(str(tmp_path), messages="messages").build(tokenizer)
    assert json.loads(task.test[0].source)[1]["content"] == "test hi"
    assert isinstance(task.tokenizer, ChatTokenizer)
