"""Routes of the server: texts as decoding writes them, and a clear error for all else."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.serving import STEPS, WORDS, HeldModel, Served, texts_of
from tests.support.toy import lively_transformer
from textgen_experiments.serving.app import ROUTES
from textgen_experiments.serving.service import ClientGoneError, WritingSettings, text_generator

KEY = "0123456789abcdefghij"
SECONDS = 30
SOURCES = ["a b c", "d", "e f g h i j k", "zz a zz", "l m", "n o p"]


@pytest.fixture(scope="module")
def model():
    return lively_transformer()


@pytest.fixture
def served(model):
    with Served(model) as server:
        yield server


@pytest.fixture
def held():
    """Return a model that is held, and its server of one slot and one place to wait."""
    model = HeldModel()
    with Served(model, slots=1, max_waiting=1) as server:
        yield model, server
        model.let_go()


def refusal(answer, status, *, param=None, code=None):
    """Return the message of an error in OpenAI's form."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert (error["type"], error["param"], error["code"]) == (kind, param, code)
    assert "\n" not in error["message"]
    return error["message"]


def test_translations_are_those_of_greedy_decoding(served, model):
    expected = texts_of(model, SOURCES)
    assert len(set(expected)) > 3, "the test needs texts that differ"
    assert served.translate(SOURCES).json() == {"texts": expected}
    assert served.translate("  a b c ").json() == {"texts": expected[:1]}
    short = served.translate(SOURCES, max_tokens=3).json()
    assert short == {"texts": texts_of(model, SOURCES, 3)} != {"texts": expected}


def test_a_text_with_line_ends_is_one_line(served, monkeypatch):
    monkeypatch.setattr(WORDS, "decode", lambda rows: ["one\n two\r\nthree" for _ in rows])
    assert served.translate("a").json() == {"texts": ["one  two three"]}


def test_a_completion_has_the_form_of_openais(served, model):
    answer = served.complete(SOURCES[:2], model="small", user="me", stream=False, stop=None).json()
    first, second = texts_of(model, SOURCES[:2])
    lengths = [min(len(row) + 1, STEPS) for row in WORDS.encode([first, second])]
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", "small")
    assert abs(answer["created"] - time.time()) < SECONDS
    assert [(each["index"], each["text"]) for each in answer["choices"]] == [
        (0, first),
        (1, second),
    ]
    assert answer["usage"]["prompt_tokens"] == 4 + 2
    assert answer["usage"]["completion_tokens"] == sum(lengths)
    assert answer["usage"]["total_tokens"] == 4 + 2 + sum(lengths)
    reasons = ["stop" if length < STEPS else "length" for length in lengths]
    assert [each["finish_reason"] for each in answer["choices"]] == reasons == ["stop", "length"]
    cut = served.complete("a b c", max_tokens=1).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    "body",
    [
        {"top_logprobs": None, "nothing": None, "stop": [], "n": None, "stream_options": None},
        {"presence_penalty": 0.0, "frequency_penalty": 0, "logprobs": False, "echo": False},
        {"tool_choice": "auto", "metadata": {}, "store": False, "best_of": 1, "suffix": ""},
    ],
)
def test_arguments_that_ask_for_nothing_change_nothing(served, model, body):
    (choice,) = served.complete(SOURCES[0], **body).json()["choices"]
    assert choice["text"] == texts_of(model, SOURCES[:1])[0]


def test_sampled_copies_are_drawn_from_the_seed_whoever_writes_beside_them(served):
    asked = {"temperature": 1.5, "top_p": 0.9, "n": 3, "seed": 5}
    alone = served.complete("a b c", **asked).json()
    assert len({each["text"] for each in alone["choices"]}) > 1
    together = served.complete(["a b c", "d e", "f"], **asked).json()
    assert len(together["choices"]) == 9
    assert together["choices"][:3] == alone["choices"]
    assert alone["usage"]["prompt_tokens"] == 4
    other = served.complete("a b c", **{**asked, "seed": 6}).json()
    assert other["choices"] != alone["choices"]
    unknown = [served.complete("a b c", temperature=2.0, n=4).json()["choices"] for _ in range(2)]
    assert unknown[0] != unknown[1]


def test_generators_of_a_request_differ_in_seed_and_number():
    draws = {
        int(torch.randint(2**62, (), generator=text_generator(s, i)))
        for s in (0, 1)
        for i in (0, 1)
    }
    assert len(draws) == 4


def test_requests_at_once_are_answered_as_one_by_one(served, model):
    expected, found = texts_of(model, SOURCES), {}

    def ask(text):
        found[text] = served.translate(text).json()["texts"]

    threads = [threading.Thread(target=ask, args=[text]) for text in SOURCES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert [found[text] for text in SOURCES] == [[text] for text in expected]


def test_state_of_the_server(served):
    served.translate(["a b", "c"])
    served.translate(" ")
    (model,) = served.client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("small", "model")
    assert served.client.get("/v1/models/small").json() == model
    message = refusal(
        served.client.get("/v1/models/a/b"), 404, code="model_not_found", param="model"
    )
    assert message == 'model must be "small", the one that is served, got "a/b"'
    assert served.client.get("/health").json() == {"status": "ok"}
    lines = served.client.get("/metrics").text.splitlines()
    assert 'textgen_requests_total{route="/translate",status="200"} 1.0' in lines
    assert 'textgen_requests_total{route="/translate",status="400"} 1.0' in lines
    assert 'textgen_requests_total{route="/v1/models/small",status="200"} 1.0' in lines
    assert 'textgen_request_seconds_count{route="/translate"} 2.0' in lines
    assert "textgen_texts_total 2.0" in lines
    assert "textgen_source_tokens_total 5.0" in lines
    assert "textgen_waiting_texts 0.0" in lines
    assert "textgen_running_texts 0.0" in lines
    assert served.metrics.summary().startswith("7 requests, 2 texts, ")


def test_the_schema_names_what_a_request_may_have(served):
    schema = served.client.get("/openapi.json").json()
    assert schema["paths"].keys() == ROUTES | {"/v1/models/{asked}"}
    prompt = schema["components"]["schemas"]["CompletionBody"]["properties"]["prompt"]
    assert {each["type"] for each in prompt["anyOf"]} == {"string", "array"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'must hold more than spaces, got ""'),
        (" \n", "must hold more than spaces"),
        (["a", "\t"], 'must hold more than spaces, got "\\t" as text 2'),
        ([], "must be a text or a list of at least one text, got []"),
        (3, "must be a text or a list of at least one text, got 3"),
        (None, "must be a text or a list of at least one text, got null"),
        ({"a": "b"}, 'must be a text or a list of at least one text, got {"a": "b"}'),
        (["a", 3], "must be a text or a list of texts, got 3 as text 2"),
        ("\ud800", "must be Unicode, got half a surrogate: send UTF-8"),
        (["a", "b\udfff"], "must be Unicode, got half a surrogate as text 2: send UTF-8"),
    ],
)
def test_a_text_that_is_none_is_refused(served, text, message):
    for route, param in (("/translate", "text"), ("/v1/completions", "prompt")):
        answer = served.client.post(route, content=json.dumps({param: text}), headers=JSON)
        assert refusal(answer, 400, param=param).startswith(f"{param} {message}")


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"stream": True}, "stream", "stream must be false or left out, got true"),
        ({"logprobs": 2}, "logprobs", "logprobs must be null or left out, got 2"),
        ({"logprobs": 0}, "logprobs", "logprobs must be null or left out, got 0"),
        ({"best_of": True}, "best_of", "best_of must be null or left out, got true"),
        ({"stop": "b"}, "stop", 'stop must be null or left out, got "b"'),
        ({"top_k": 3}, "top_k", '"top_k" must be left out, got 3: this server does not know it'),
        ({"max_tokens": "3"}, "max_tokens", 'max_tokens must be a valid integer, got "3"'),
        ({"max_tokens": True}, "max_tokens", "max_tokens must be a valid integer, got true"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be greater than or equal to 1, got 0"),
        ({"max_tokens": 21}, "max_tokens", "max_tokens must be at most 20, got 21: raise"),
        ({"temperature": -1}, "temperature", "temperature must be greater than or equal to 0"),
        ({"temperature": 3}, "temperature", "temperature must be less than or equal to 2, got 3"),
        ({"top_p": 0}, "top_p", "top_p must be greater than 0, got 0"),
        ({"n": 2}, "n", "n must be 1 at temperature 0, where all texts are the same, got 2"),
        ({"n": 129, "temperature": 1}, "n", "n must be less than or equal to 128, got 129"),
        ({"seed": -1}, "seed", "seed must be greater than or equal to 0, got -1"),
        ({"seed": 2**63}, "seed", "seed must be less than or equal to"),
    ],
)
def test_an_argument_that_is_wrong_is_refused_by_name(served, body, param, message):
    answer = served.client.post(
        "/v1/completions", content=json.dumps({"prompt": "a", **body}), headers=JSON
    )
    assert refusal(answer, 400, param=param).startswith(message)


def test_names_that_are_no_unicode_are_refused(served):
    body = json.dumps({"prompt": "a", "\ud800": 1})
    answer = served.client.post("/v1/completions", content=body, headers=JSON)
    assert refusal(answer, 400).startswith("body must be a JSON object")


def test_an_argument_that_translation_does_not_know_is_refused(served):
    message = refusal(served.translate("a", temperature=1), 400, param="temperature")
    assert message == "temperature must be left out, got 1: this route does not know it"
    assert refusal(served.client.post("/translate", json={}), 400, param="text") == (
        "text must be given, got none"
    )


def test_another_model_is_refused(served):
    answer = served.complete("a", model="gpt\ud800".encode("utf-8", "replace").decode())
    message = refusal(answer, 404, param="model", code="model_not_found")
    assert message == 'model must be "small", the one that is served, got "gpt?"'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "body must be given, got none"),
        (b"{", "body must be JSON, got an error at character 1: "),
        (b'{"text": "a"', "body must be JSON, got an error at character 12: "),
        (b'{"text": "\xff"}', "body must be UTF-8, got the byte 0xff at position 11: convert it"),
        (b"[1]", "body must be a JSON object sent as Content-Type: application/json, got [1]"),
        (b"[" * 9_000, "body must be JSON, got: "),
        (b'{"text": ' + b"9" * 5_000 + b"}", "body must be JSON, got: "),
    ],
)
def test_a_body_that_is_no_json_in_utf_8_is_refused(served, content, message):
    answer = served.client.post("/translate", content=content, headers=JSON)
    assert refusal(answer, 400).startswith(message)


def test_a_body_of_another_kind_names_the_header_to_send(served):
    answer = served.client.post(
        "/translate", content=b'{"text": "a"}', headers={"Content-Type": "text/plain"}
    )
    assert "sent as Content-Type: application/json" in refusal(answer, 400)


def test_other_paths_and_methods_are_refused(served):
    assert refusal(served.client.get("/nothing"), 404) == (
        'path must be one of the server\'s, got "/nothing"'
    )
    assert refusal(served.client.get("/translate"), 405) == (
        "method must be POST for /translate, got GET"
    )


def test_a_large_body_is_refused_whether_it_says_its_length_or_not(served):
    large = json.dumps({"text": "a " * 10_000}).encode()

    def parts():
        for start in range(0, len(large), 1_000):
            yield large[start : start + 1_000]

    for content in (large, parts()):
        answer = served.client.post("/translate", content=content, headers=JSON)
        assert "at most 10,000 bytes, got more: send texts in parts" in refusal(answer, 413)
        assert answer.headers["connection"] == "close"
    assert served.translate("a").status_code == 200


def test_a_source_that_is_too_long_is_refused_by_its_number(served, model):
    message = refusal(
        served.translate(["a", "b " * 12]), 400, param="text", code="context_length_exceeded"
    )
    assert message.startswith(
        "text must have at most 12 tokens with its end token, got 13 as text 2"
    )
    assert served.translate("b " * 11).json() == {"texts": texts_of(model, ["b " * 11])}


def test_words_that_the_tokenizer_does_not_have_are_refused(served):
    assert refusal(served.translate("a unknown"), 400, param="text").startswith("text: ")


def test_ten_thousand_texts_at_once_are_refused_and_the_server_goes_on(model):
    with Served(model, most_bytes=1_000_000) as server:
        message = refusal(server.translate(["a b"] * 10_000), 400, param="text")
        assert message.startswith(
            "text must ask for at most 12 texts, got 10,000: send them in parts"
        )
        message = refusal(server.complete("a", n=13, temperature=1), 400, param="prompt")
        assert "got 1 of 13 copies" in message
        assert server.translate(["a"] * 12).json() == {"texts": texts_of(model, ["a"]) * 12}


def test_a_full_queue_is_refused_until_there_is_room(held):
    model, server = held
    answers = []
    waiting = [
        threading.Thread(target=lambda: answers.append(server.translate("a b"))) for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    until(lambda: server.worker.num_waiting + server.worker.num_running == 2)
    answer = server.translate("a b")
    message = refusal(answer, 429, code="queue_full")
    assert (
        message == "texts that run or wait must be at most 2, got 1 beside 2: try again in a second"
    )
    assert answer.headers["retry-after"] == "1"
    model.let_go()
    for thread in waiting:
        thread.join(SECONDS)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert server.translate("a b").status_code == 200


def until(condition):
    last = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.001)


def test_a_request_that_takes_too_long_is_answered_and_frees_its_slot():
    model = HeldModel()
    with Served(model, slots=1, max_waiting=0, timeout=1.0) as server:
        assert "within 1 seconds" in refusal(server.translate("a b"), 504)
        model.let_go()
        until(lambda: not server.worker.num_running)
        assert server.translate("a b").json() == {"texts": texts_of(model.inner, ["a b"])}


def test_a_client_that_goes_away_frees_its_slot(held):
    model, server = held

    async def receive():
        await asyncio.to_thread(model.has_begun.wait, SECONDS)
        return {"type": "http.disconnect"}

    request = SimpleNamespace(receive=receive)
    with pytest.raises(ClientGoneError):
        asyncio.run(server.service.write(request, "text", ["a b"], WritingSettings()))
    model.let_go()
    until(lambda: server.worker.num_running == 0)
    assert server.metrics.summary() == "0 requests, 0 texts, 0 tokens"


def test_a_server_that_stops_answers_what_it_does_not_write(held):
    model, server = held
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.translate("a b")))
    thread.start()
    assert model.has_begun.wait(SECONDS)
    stopping = threading.Thread(target=server.worker.stop)
    stopping.start()
    model.let_go(1)
    for each in (thread, stopping):
        each.join(SECONDS)
    assert refusal(answers[0], 503) == "the server has stopped"
    assert refusal(server.translate("a"), 503) == "the server stops"


def test_a_model_that_fails_is_an_error_and_the_server_goes_on(monkeypatch):
    model = lively_transformer()
    with Served(model) as server:
        with monkeypatch.context() as patch:
            patch.setattr(model, "noise", model.noise * float("nan"))
            message = refusal(server.translate("a b"), 500)
            assert message.startswith("logits of the model must be finite numbers, got nan")
        with monkeypatch.context() as patch:
            patch.setattr(model, "start", None)
            assert refusal(server.translate("a b"), 500) == "the server failed: its log says why"
        assert server.translate("a b").json() == {"texts": texts_of(model, ["a b"])}


@pytest.mark.parametrize("header", [None, KEY, f"Bearer {KEY}x", f"bearer {KEY}", "Bearer ", "ä"])
def test_a_request_without_the_key_is_refused(model, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    with Served(model, key=KEY) as server:
        for route in ("/v1/models", "/metrics", "/nothing"):
            answer = server.client.get(route, headers=headers)
            message = refusal(answer, 401, code="invalid_api_key")
            assert KEY not in message
        assert server.client.post("/translate", headers=headers).status_code == 401
        assert server.client.get("/health").status_code == 200


def test_a_request_with_the_key_is_answered(model):
    with Served(model, key=KEY) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        assert server.translate("a b").json() == {"texts": texts_of(model, ["a b"])}


def test_sampling_needs_a_temperature(served, model):
    greedy = served.complete("a b c", top_p=0.5, temperature=0).json()["choices"]
    assert [each["text"] for each in greedy] == texts_of(model, ["a b c"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(["prompt", "model", "n", "temperature", "top_p", "seed", "stop", "echo"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(NAMES, VALUES) | VALUES)
def test_any_json_is_answered_or_refused_in_one_line(served, body):
    answer = served.client.post("/v1/completions", content=json.dumps(body), headers=JSON)
    if answer.status_code != 200:
        assert answer.status_code in (400, 404)
        assert "\n" not in answer.json()["error"]["message"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=30))
def test_any_bytes_are_refused_in_one_line(served, content):
    answer = served.client.post("/translate", content=content, headers=JSON)
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]
