"""Whatever a server sends is a right answer or one line of error, in bounded time and memory."""

import json
import logging
import math
import random
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.raw_server import RawServer, response, trickle
from textgen_env.experts import bounded_http
from textgen_env.experts.completions_client import CompletionsClient
from textgen_env.experts.expert import ExpertError
from textgen_env.experts.redaction import Redaction
from textgen_env.experts.remote_config import API_KEY, RemoteTeacher
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main

K, PROMPTS = 3, [[3, 4, 5], [6, 7]]
LABELS = {"prompt_logprobs": K, "max_tokens": 1}
TEXTS = {"n": 2, "max_tokens": 4}
KEY = 'sk-"Zq7!\\x/9%vW&2<k>-0123456789abcdefghijklm'


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(bounded_http, "BACKOFF", 0.0)
    monkeypatch.delenv(API_KEY, raising=False)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_words([*"abcdefgh"])


def client(url="http://127.0.0.1:9/v1", timeout=5.0, retries=0):
    return CompletionsClient(url, "small", timeout=timeout, retries=retries)


def asked(url, **options):
    """Return the error of a request, which must be one line."""
    with pytest.raises(ExpertError) as caught:
        client(url, **options).ask(PROMPTS, LABELS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels_answer():
    position = {
        str(token): {"logprob": -1.0 - rank, "rank": rank, "decoded_token": "?"}
        for rank, token in enumerate((4, 5, 7), 1)
    }
    choices = [
        {"index": index, "text": "?", "prompt_logprobs": [None, *[position] * (len(prompt) - 1)]}
        for index, prompt in enumerate(PROMPTS)
    ]
    return {"model": "small", "choices": choices}


def texts_answer():
    choices = [
        {"index": index, "text": "a b", "token_ids": [3, 4, 2], "finish_reason": "stop"}
        for index in range(4)
    ]
    return {"model": "small", "choices": choices}


ODD = [
    None, True, False, 0, -1, 1, 0.0, -0.0, 1e308, -1e308, -3.5e38, -(10**400), 10**400, 2**64,
    "", "\ud800", "a\udfffb", "9" * 5000, "٣", "-1", "07", [], [0], [[]], {}, {"": {}}, math.pi,
    "stop", "small", "\x00", "x" * 3000,
]  # fmt: skip


def places(value, found=()):
    """Return every container in `value` that has members."""
    members = value.values() if isinstance(value, dict) else value
    found = [*found, value] if value else list(found)
    for member in members:
        if isinstance(member, dict | list):
            found = places(member, found)
    return found


def mutate(answer, draw):
    """Change one member of a container of `answer`, or its name, or its bytes."""
    place = draw.choice(places(answer))
    name = draw.choice([*place]) if isinstance(place, dict) else draw.randrange(len(place))
    action = draw.randrange(5)
    if action == 0:
        place[name] = draw.choice(ODD)
    elif action == 1:
        del place[name]
    elif action == 2 and isinstance(place, dict):
        place[str(draw.choice(ODD))[:5000]] = place.pop(name)
    elif action == 3 and isinstance(place, list):
        place.insert(name, draw.choice(ODD))
    else:
        place[name] = draw.choice(places(answer))  # part of another place, as it was
        try:
            json.dumps(answer)
        except ValueError:  # a loop
            place[name] = None


def as_bytes(answer, draw):
    data = bytearray(json.dumps(answer).encode())
    if not draw.randrange(4):
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def assert_labels_are_right(completions):
    server = client()
    for (completion,), prompt in zip(completions, PROMPTS, strict=True):
        tokens, log_probs = server.prompt_top_k(completion, prompt, 1, k=K, vocab_size=11)
        assert len(tokens) == len(log_probs) == len(prompt) - 1
        for ids, values in zip(tokens, log_probs, strict=True):
            assert len(set(ids)) == len(values) == K
            assert all(type(token) is int and 0 <= token < 11 for token in ids)
            assert all(-3.4e38 < value <= 0 for value in values)
            assert sorted(values, reverse=True) == values
            assert sum(map(math.exp, values)) <= 1.01


def assert_texts_are_right(completions, tokenizer):
    server = client()
    for completion in (each for group in completions for each in group):
        tokens = server.generated_tokens(completion, tokenizer)
        assert all(type(token) is int and 2 <= token < tokenizer.vocab_size for token in tokens)
        assert 2 not in tokens[:-1]


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 2**64))
def test_a_mutated_answer_is_refused_or_right(tokenizer, seed):
    draw, server = random.Random(seed), client()
    for number in range(20):  # 500 times 20 mutated answers
        wants_labels = number % 2 == 0
        answer = labels_answer() if wants_labels else texts_answer()
        answer = json.loads(json.dumps(answer))  # no place twice
        for _ in range(draw.randrange(1, 4)):
            if answer:
                mutate(answer, draw)
        data = as_bytes(answer, draw)
        server._post = lambda _, data=data: data
        try:
            completions = server.ask(PROMPTS, LABELS if wants_labels else TEXTS)
            if wants_labels:
                assert_labels_are_right(completions)
            else:
                assert_texts_are_right(completions, tokenizer)
        except ExpertError as error:
            message = str(error)
        else:
            message = ""
        assert message.isprintable()


def test_an_answer_that_is_not_mutated_is_right(tokenizer):
    server = client()
    server._post = lambda _: json.dumps(labels_answer()).encode()
    assert_labels_are_right(server.ask(PROMPTS, LABELS))
    server._post = lambda _: json.dumps(texts_answer()).encode()
    assert_texts_are_right(server.ask(PROMPTS, TEXTS), tokenizer)


GOOD = response(json.dumps(labels_answer()).encode())


@pytest.mark.parametrize(
    "value", ["soon", "-5", "9" * 5000, "Mon, 99 Foo 99999 00:00:00 GMT", "1e999", "", "nan", "é"]
)
def test_a_pause_of_no_meaning_is_no_pause(value):
    busy = response(b"", f"Retry-After: {value}", status="503 Busy")
    if value.isdecimal():  # at most ten minutes
        assert bounded_http.retry_policy(1).parse_retry_after("9" * 50) == 600
    with RawServer(busy, GOOD) as server:
        assert len(client(server.url, retries=1).ask(PROMPTS, LABELS)) == len(PROMPTS)
    assert server.connections == 2


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 99999999999999999999999"],
        ["Content-Length: 1000000000000"],
        ["Content-Length: -5"],
        ["Content-Length: 1, 2"],
        ["Content-Length: " + "9" * 5000],
        ["Transfer-Encoding: chunked"],
        ["Content-Encoding: gzip"],
        ["A: " + "b" * 70_000],
        [f"A{number}: b" for number in range(200)],
    ],
)
@pytest.mark.parametrize("body", [b"", b"FFFFFFFFFFFFFFFF\r\nx", b"-5\r\nx", b"zz\r\n", b"{"])
def test_headers_of_no_meaning_are_refused(headers, body):
    with RawServer(response(body, *headers)) as server:
        assert asked(server.url, timeout=0.5)


@pytest.mark.parametrize(
    "opening",
    [
        response(b"", "Transfer-Encoding: chunked"),
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 503 Busy\r\n\r\n",
    ],
)
def test_a_body_without_an_end_is_refused(opening):
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n" if b"chunked" in opening else b" " * 0x10000
    with RawServer(trickle(opening, piece, 0)) as server:
        start = time.perf_counter()
        message = asked(server.url)
        assert time.perf_counter() - start < 5
    assert "bytes for this request, got more" in message or "header line" in message


@pytest.mark.parametrize(
    ("opening", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
    ],
)
def test_a_trickle_without_an_end_is_refused(opening, piece):
    with RawServer(trickle(opening, piece, 0.05)) as server:
        start = time.perf_counter()
        assert "got" in asked(server.url, timeout=0.3)
        assert time.perf_counter() - start < 3


ESCAPED = {
    "as it is": KEY,
    "in JSON": json.dumps({"error": KEY}),
    "twice in JSON": json.dumps(json.dumps(KEY)),
    "in Python": repr([KEY]),
    "in bytes": repr(KEY.encode()),
    "in an address": quote(KEY, safe=""),
    "in HTML": KEY.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;"),
    "in capitals": KEY.upper(),
    "in code points": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "masked by the server": f"{KEY[:8]}****{KEY[-6:]}",
    "cut": KEY[7:25],
    "between control characters": "\x00".join(KEY),
}


@pytest.mark.parametrize("spelled", ESCAPED.values(), ids=ESCAPED)
@pytest.mark.parametrize("before", [0, 150, 185])
def test_no_part_of_a_key_is_shown(spelled, before):
    shown = Redaction(KEY, 200)("." * before + spelled + " end").lower()
    plain = shown.replace("\\", "").lower()
    for start in range(len(KEY) - 3):
        part = KEY[start : start + 4].lower()
        assert part not in shown
        assert part not in plain
        assert quote(part, safe="").lower() not in shown
    assert len(shown) <= 200
    assert "***" in shown or before > 150


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4), st.integers(0, 400))
def test_no_part_of_any_key_is_shown(key, before):
    shown = Redaction(key, 200)(json.dumps({"." * before: repr(key * 3)}))
    assert len(shown) <= 200
    assert key not in shown
    assert shown == Redaction("", 200)(shown)


def test_a_text_without_the_key_is_shown_as_it_is():
    assert Redaction(KEY, 200)("no  such\nmodel") == "no such model"
    assert Redaction("", 5)("abcdefg") == "abcde"
    assert Redaction("secret", 99)("the secretsecret is") == "the *** is"


LEAKS = [
    response(KEY.encode(), status="401 No"),
    response(json.dumps({"model": KEY}).encode()),
    response(b"", status=f"401 {KEY}"),
    f"{KEY}\r\n\r\n".encode(),
    response(b"", f"Retry-After: {KEY}", status="503 Busy"),
    response(b"", f"Content-Length: {KEY}", status="400 No"),
    f"HTTP/1.1 400 No\r\n{KEY}\r\nB\r\n\r\n{KEY}".encode(),
    f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode(),
]


@pytest.mark.parametrize("answer", LEAKS)
def test_a_server_that_repeats_the_key_does_not_get_it_shown_or_logged(
    answer, monkeypatch, caplog, capsys
):
    monkeypatch.setenv(API_KEY, KEY)
    caplog.set_level(logging.DEBUG)
    with RawServer(answer) as server:
        message = asked(server.url, timeout=1.0, retries=1)
    everything = message + caplog.text + "".join(capsys.readouterr())
    for start in range(len(KEY) - 3):
        assert KEY[start : start + 4] not in everything
        assert json.dumps(KEY[start : start + 4])[1:-1] not in everything


SECRET = "PWpw1234"
ADDRESSES = [
    "http://me:PWpw1234@host/v1",
    "http:///me:PWpw1234@host/v1",
    "http:me:PWpw1234@host/v1",
    "HTTP://me:PWpw1234@host/v1",
    "http://me:PWpw1234/@host/v1",
    "http://me:12/PWpw1234@host/v1",
    "http://me%3APWpw1234%40host/v1",
    "http://host/v1?api_key=PWpw1234",
    "http://host/v1#PWpw1234",
    "http://host/v1;PWpw1234",
    "http://host\\@PWpw1234/v1",
    "http://[PWpw1234]/v1",
    "http://host/ PWpw1234",
    "http://host/v1\nPWpw1234",
    "https://me:PWpw1234@[::1/v1",
    "http://me:PWpw1234@\u2102/v1",
]


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_may_hold_a_password_is_refused_and_not_shown(url, tmp_path, capsys):
    with pytest.raises(ValueError, match="url must be http:// or https:// with") as caught:
        RemoteTeacher(url, "m", tmp_path)
    assert SECRET not in str(caught.value)
    with pytest.raises(SystemExit):
        main(
            [
                *("train", "--output", str(tmp_path / "run"), "--teacher", url),
                *("--server.model", "m", "--server.tokenizer", str(tmp_path)),
            ]
        )
    assert SECRET[:4] not in "".join(capsys.readouterr())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "https://api.example.com/v1/",
        "http://10.0.0.1",
        "http://[::1]:80/a_b/~c",
        "HTTP://Host/v1",
    ],
)
def test_plain_addresses_are_accepted(url, tmp_path):
    assert RemoteTeacher(url, "m", tmp_path).url == url


def test_a_key_in_the_path_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv(API_KEY, "secret-key")
    with pytest.raises(ExpertError, match="url must not hold the key") as caught:
        client("http://host/secret-key/v1")
    assert "secret" not in str(caught.value)
