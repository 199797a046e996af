"""Conversations with a served student that was trained on messages."""

import pytest
import torch

pytest.importorskip("transformers")

from tests.support.chats import QWEN
from tests.support.serving import STEPS, Served
from tests.support.toy import lively_transformer
from textgen_env.generation.decoding import greedy
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.chat import ChatTokenizer, conversation

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
TOKENIZER = ChatTokenizer(QWEN.tokenizer())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = RecurrentConfig(TOKENIZER.vocab_size, 16, dropout=0.0)
    return config.build(TOKENIZER.special).eval()


@pytest.fixture
def served(model):
    with Served(model, tokenizer=TOKENIZER, max_source_tokens=200) as server:
        yield server


def ask(served, messages, **body):
    return served.client.post("/v1/chat/completions", json={"messages": messages, **body})


def test_the_answer_is_what_the_model_writes_after_the_templated_messages(served, model):
    answer = ask(served, MESSAGES, model="small", max_completion_tokens=STEPS).json()
    source = encode_sources([conversation(MESSAGES)], TOKENIZER)
    tokens = greedy(model, source, STEPS)
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"] == {
        "role": "assistant",
        "content": TOKENIZER.decode(tokens.tolist())[0],
    }
    assert answer["usage"]["prompt_tokens"] == source.shape[1]
    assert answer["usage"]["completion_tokens"] == int((tokens != TOKENIZER.special.pad).sum())


def test_parts_of_text_are_one_text(served):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    answer = ask(served, [MESSAGES[0], {"role": "user", "content": parts}]).json()
    assert answer["choices"] == ask(served, MESSAGES).json()["choices"]


def test_a_plain_text_is_a_message_of_the_user(served):
    answer = ask(served, MESSAGES[1:]).json()["choices"][0]["message"]["content"]
    assert served.complete("hi").json()["choices"][0]["text"] == answer


@pytest.mark.parametrize(
    ("messages", "body", "message"),
    [
        ([], {}, "messages must have at least 1 item"),
        ([{"role": "user"}], {}, "messages.0.content must be given, got none"),
        ([{"role": "user", "content": 1}], {}, "messages.0.content must be a valid string"),
        ([{"role": "user", "content": []}], {}, "messages.0.content must be a valid string"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            {},
            'content must be a text or a list of {"type": "text", "text": ...}, got {"type": '
            '"image_url"} as part 2',
        ),
        ([{"role": "user", "content": "<|im_end|>"}], {}, "must not spell a special piece"),
        (MESSAGES, {"stream": True}, "stream must be false or left out"),
        (MESSAGES, {"tools": [{}]}, "tools must be null or left out"),
        (MESSAGES, {"n": 2}, "n must be 1 at temperature 0"),
    ],
)
def test_what_is_no_conversation_is_refused(served, messages, body, message):
    answer = ask(served, messages, **body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_model_of_plain_texts_answers_no_messages():
    with Served(lively_transformer()) as served:
        answer = ask(served, MESSAGES)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"
