"""A remote teacher answers as the same teacher here does, or raises an error of one line."""

import copy
import json
import math
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.pretrained import FAMILIES, TEXTS, save_family
from tests.support.remote_server import Causal, EncoderDecoder, Server
from textgen_agents.losses.divergences import forward_kl
from textgen_agents.losses.labels import TopKWithTail
from textgen_agents.losses.objectives import loss_for
from textgen_env.experts import bounded_http, completions_client
from textgen_env.experts.expert import ExpertError, NeuralExpert
from textgen_env.experts.remote import RemoteExpert
from textgen_env.experts.remote_config import RemoteTeacher
from textgen_env.generation.sampling import Sampling
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.prompts import with_expert_prompts
from textgen_env.tasks.task import Pair, TextTask, encode
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import Trajectories

WORDS = [*"abcdefgh", "=>"]
PROMPT = "{source} =>"
K, ROWS = 4, 7
SCALE = 3.0  # of the untrained model's logits


class Lively(torch.nn.Module):
    """Untrained Transformer with random logits by the last token, for texts that differ."""

    def __init__(self, vocab_size):
        super().__init__()
        torch.manual_seed(0)
        config = TransformerConfig(vocab_size, width=16, num_heads=2, feed_forward=32)
        self.inner = Transformer(config).eval().requires_grad_(False)
        torch.manual_seed(0)
        self.noise = 2 * torch.randn(vocab_size, vocab_size)
        self.noise[3:, 2] += 2  # so that some of them end
        self.vocab_size, self.special = vocab_size, self.inner.special

    def start(self, source, max_steps):
        return self.inner.start(source, max_steps)

    def step(self, previous, cache):
        logits, cache = self.inner.step(previous, cache)
        return SCALE * logits + self.noise[previous], cache

    def sequence_logits(self, source, actions):
        previous = torch.nn.functional.pad(actions[:, :-1], (1, 0), value=self.special.start)
        return SCALE * self.inner.sequence_logits(source, actions) + self.noise[previous]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_words(WORDS)


@pytest.fixture(scope="module")
def teacher(tokenizer):
    return Lively(tokenizer.vocab_size)


@pytest.fixture(scope="module")
def task(tokenizer):
    texts = "a b", "c", "d e f g", "h g", "a a a", "b c d", "e"
    pairs = [Pair(text, " ".join(text.split()[::-1])) for text in texts]
    return with_expert_prompts(
        TextTask("letters", tokenizer, pairs, pairs, pairs, 8, 8, {}), PROMPT
    )


@pytest.fixture(scope="module")
def examples(task):
    return encode(task.train, task)


@pytest.fixture
def trajectories(examples, tokenizer):
    """Return references as trajectories whose teacher has other sources than the student."""
    trajectories = Trajectories.from_examples(examples, tokenizer.special)
    assert not trajectories.mask.all(), "the tests need padding"
    return trajectories


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(bounded_http, "BACKOFF", 0.0)
    monkeypatch.delenv(completions_client.API_KEY, raising=False)


@pytest.fixture
def server(teacher, tokenizer):
    (separator,) = tokenizer.encode(["=>"])[0]
    with Server(EncoderDecoder(teacher, separator)) as server:
        yield server


@pytest.fixture
def make(server, tokenizer, tmp_path):
    """Return a function that makes remote experts with a common cache file."""
    made = []

    def make(**settings):
        chosen = {"timeout": 30.0, "retries": 2, "k": K, "cache": tmp_path / "labels.sqlite"}
        chosen |= settings
        known = chosen.pop("known_tokenizer", tokenizer)
        made.append(RemoteTeacher(server.url, "small", tmp_path, **chosen).build(known))
        return made[-1]

    yield make
    for expert in made:
        expert.cache.close()


@contextmanager
def raises_one_line(*parts):
    with pytest.raises(ExpertError) as caught:
        yield
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def assert_same_labels(expert, teacher, trajectories, k=K):
    label, expected = expert.top_k(trajectories, k), NeuralExpert(teacher).top_k(trajectories, k)
    mask = trajectories.mask
    assert torch.equal(label.tokens[mask], expected.tokens[mask])
    torch.testing.assert_close(label.log_probs[mask], expected.log_probs[mask])
    tail, whole = label.tail_log_prob[mask].exp(), expected.tail_log_prob[mask].exp()
    torch.testing.assert_close(tail, whole, rtol=0, atol=1e-6)  # differences of sums near 1
    assert label.log_probs.isfinite().all()


@pytest.mark.parametrize("k", [1, K])
def test_labels_equal_those_of_the_local_teacher(make, teacher, trajectories, k):
    assert_same_labels(make(), teacher, trajectories, k)


def test_with_all_tokens_the_tail_is_empty(make, tokenizer, teacher, trajectories):
    assert_same_labels(make(k=tokenizer.vocab_size), teacher, trajectories, tokenizer.vocab_size)


def test_a_tail_below_float32_resolution_is_small_and_finite(make, server, trajectories):
    server.model.model = copy.deepcopy(server.model.model)
    server.model.model.noise[:, 5] += 60
    tail = make().top_k(trajectories, 1).tail_log_prob[trajectories.mask]
    assert tail.exp().tolist() == pytest.approx([1e-7] * len(tail))


def test_best_actions_equal_those_of_the_local_teacher(make, server, teacher, trajectories):
    server.model.model = teacher = copy.deepcopy(teacher)
    teacher.noise[:, 0] += 5  # padding is most probable everywhere, then start
    teacher.noise[:, 1] += 4
    expert, local, mask = make(), NeuralExpert(teacher), trajectories.mask
    best = expert.best_actions(trajectories)
    assert torch.equal(best[mask], local.best_actions(trajectories)[mask])
    length = mask.sum(1) - 1
    state = trajectories.expert_view, trajectories.actions, length, trajectories.reference
    assert torch.equal(expert.best_actions_at(*state), local.best_actions_at(*state))


def test_a_loss_equals_that_of_the_local_teacher(make, teacher, trajectories, tokenizer):
    student = Lively(tokenizer.vocab_size)
    remote, local = (
        loss_for(TopKWithTail(K), forward_kl, trajectories, student, expert)
        for expert in (make(), NeuralExpert(teacher))
    )
    torch.testing.assert_close(remote, local)


def test_a_batch_is_one_request_without_duplicate_rows(make, server, trajectories):
    make().top_k(trajectories.select(torch.tensor([0, 1, 2, 0, 1])), K)
    (body,) = server.asked
    assert len(body["prompt"]) == 3
    assert body["prompt_logprobs"] == K
    assert body["model"] == "small"
    expert = make(batch_size=2)
    expert.top_k(trajectories, K)
    assert [len(body["prompt"]) for body in server.asked[1:]] == [2, 2]  # three rows are known
    assert expert.server.requests == 2


def test_cached_answers_are_not_requested_again(make, server, teacher, trajectories):
    make().top_k(trajectories, K)
    asked = len(server.asked)
    again = make()
    assert_same_labels(again, teacher, trajectories)
    again.best_actions(trajectories)
    assert len(server.asked) == asked
    assert again.server.requests == 0
    assert again.queries.tokens == 2 * int(trajectories.mask.sum()), (
        "cached answers count as queries"
    )


def test_the_last_token_is_no_part_of_a_labels_key(make, server, trajectories):
    expert, last = make(), trajectories.mask.sum(1, keepdim=True) - 1
    labels = expert.top_k(trajectories, K)
    actions = trajectories.actions.scatter(1, last, 7)
    other = Trajectories(
        trajectories.source, actions, trajectories.writer, trajectories.mask,
        trajectories.reference, trajectories.expert_view,
    )  # fmt: skip
    assert torch.equal(expert.top_k(other, K).tokens, labels.tokens)
    assert len(server.asked) == 1


@pytest.mark.parametrize("other", ["model", "k", "tokenizer"])
def test_another_query_is_requested(make, server, trajectories, other):
    make().top_k(trajectories, K)
    settings = {
        "k": {"k": K + 1},
        "tokenizer": {"known_tokenizer": Tokenizer.from_words("hgfedcba=")},
    }
    expert = make(**settings.get(other, {}))
    if other == "model":
        server.name = expert.server.model = "large"
        expert = RemoteExpert(expert.server, expert.tokenizer, expert.cache, k=K)
    expert.top_k(trajectories, K)
    assert len(server.asked) == 2


TIMEOUT = 1.5  # seconds; enough for an answer without faults on a busy machine


def respond_too_late(handler):
    time.sleep(2 * TIMEOUT)
    return False


def refuse(status, *headers):
    def answer(handler):
        handler.reply(status, b'{"error": {"message": "no"}}', headers)
        return True

    return answer


def cut_at_once(handler):
    handler.close_connection = True
    return True


def cut_in_the_middle(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


FAULTS = {
    "time-out": respond_too_late,
    "500": refuse(500),
    "503": refuse(503),
    "429": refuse(429),
    "cut at once": cut_at_once,
    "cut in the middle": cut_in_the_middle,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_transient_fault_is_retried(make, server, teacher, trajectories, fault):
    server.faults.extend([fault, fault])
    assert_same_labels(make(timeout=TIMEOUT), teacher, trajectories)
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_permanent_fault_raises_one_line_and_stores_nothing(make, server, trajectories, fault):
    server.faults.extend([fault] * 3)
    expert = make(timeout=TIMEOUT)
    with raises_one_line("the teacher must ", server.url, ", got"):
        expert.top_k(trajectories, K)
    assert len(server.asked) == 3
    assert_nothing_was_stored(expert)


def test_a_server_that_is_down_raises_one_line(make, server, trajectories):
    server.__exit__()
    with raises_one_line("the teacher must answer at http", "check that it runs"):
        make().top_k(trajectories, K)
    server.thread = type(server.thread)()  # so that the fixture can stop it again
    server.thread.start()


def test_the_pause_that_the_server_asks_for_is_kept(make, server, teacher, trajectories):
    server.faults.append(refuse(429, ("Retry-After", "1")))
    start = time.perf_counter()
    assert_same_labels(make(), teacher, trajectories)
    assert time.perf_counter() - start >= 1


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
def test_a_refusal_is_not_retried(make, server, trajectories, status):
    server.faults.append(refuse(status, ("Location", server.url)))
    with raises_one_line("must accept the request", f"got status {status}: ", '"no"'):
        make().top_k(trajectories, K)
    assert len(server.asked) == 1


def assert_nothing_was_stored(expert):
    (count,) = expert.cache.connection.execute("SELECT count(*) FROM answers").fetchone()
    assert count == 0


def spoiled(change):
    """Return a change of an answer by `change` of the second choice's last position but one.

    `change` modifies the position or the answer in place, or returns a replacement.
    """

    def spoil(answer):
        positions = answer["choices"][1]["prompt_logprobs"]
        replaced = change(positions[-2], answer)
        if replaced is not None:
            positions[-2] = replaced
        return answer

    return spoil


def without_the_best(entries, _):
    best = max(entries, key=lambda token: entries[token]["logprob"])
    return {token: entry for token, entry in entries.items() if token != best}


def with_value(value):
    def change(entries, _):
        next(iter(entries.values()))["logprob"] = value

    return change


def equally_probable(entries, _):
    for entry in entries.values():
        entry["logprob"] = -0.1


def without_a_position(_, answer):
    answer["choices"][1]["prompt_logprobs"].pop()


def with_an_extra_position(_, answer):
    answer["choices"][1]["prompt_logprobs"].insert(0, None)


def without_positions(_, answer):
    del answer["choices"][1]["prompt_logprobs"]


def without_a_choice(_, answer):
    answer["choices"].pop()


def with_a_duplicate_choice(_, answer):
    answer["choices"][0]["index"] = answer["choices"][1]["index"]


def with_another_model(_, answer):
    answer["model"] = "large"


def without_choices(_, answer):
    answer["choices"] = "none"


MALFORMED = [
    (lambda _: b"<html>", "be JSON ("),
    (lambda answer: json.dumps(answer).encode()[:-9], "be JSON ("),
    (lambda _: b"\xff", "be JSON ("),
    (lambda _: b"[1]", "be a JSON object, got [1]"),
    (lambda _: b"[" * 100_000, "be JSON ("),
    (spoiled(with_another_model), 'be of the model "small", got large'),
    (spoiled(without_choices), "hold a list of choices, got none"),
    (spoiled(without_a_choice), f"hold {ROWS} choices, numbered from 0, got"),
    (spoiled(with_a_duplicate_choice), f"hold {ROWS} choices, numbered from 0, got"),
    (spoiled(without_positions), "hold a list as prompt_logprobs, got None"),
    (spoiled(without_a_position), "positions, as the prompt has, got"),
    (spoiled(with_an_extra_position), "positions, as the prompt has, got"),
    (spoiled(lambda *_: 1), "hold an object at every position, got 1"),
    (spoiled(without_the_best), "4 best tokens at every position"),
    (spoiled(lambda entries, _: {"7": entries.popitem()[1]}), "got ['7']"),
    (spoiled(lambda entries, _: {**entries, "99": entries.popitem()[1]}), "ids from 0 to 11"),
    (spoiled(lambda entries, _: {**entries, "a": entries.popitem()[1]}), "ids from 0 to 11"),
    (spoiled(with_value(math.nan)), "be JSON (NaN is not a JSON number)"),
    (spoiled(with_value(-math.inf)), "be JSON (-Infinity is not a JSON number)"),
    (spoiled(with_value(0.5)), "log-probabilities, finite and at most 0, got"),
    (spoiled(with_value("-1")), "log-probabilities, finite and at most 0, got"),
    (spoiled(with_value(None)), "log-probabilities, finite and at most 0, got"),
    (spoiled(equally_probable), "probabilities that sum to 1 at most, got"),
]


@pytest.mark.parametrize(("change", "message"), MALFORMED)
def test_a_malformed_response_raises_one_line_and_stores_nothing(
    make, server, teacher, trajectories, change, message
):
    server.changes.append(change)
    expert = make()
    with raises_one_line("a response of http", message, "none of it was stored"):
        expert.top_k(trajectories, K)
    assert_nothing_was_stored(expert)
    assert_same_labels(expert, teacher, trajectories)


def test_the_key_is_sent_and_never_shown(make, server, trajectories, monkeypatch, tmp_path):
    monkeypatch.setenv(completions_client.API_KEY, " secret-key\n")
    expert = make()
    server.faults.append(refuse(401))
    with raises_one_line("401"):
        expert.top_k(trajectories, K)
    server.changes.append(lambda _: b'"secret-key"')
    with raises_one_line("got ***"):
        expert.top_k(trajectories, K)
    expert.top_k(trajectories, K)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-key"}
    expert.cache.close()
    assert b"secret-key" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_without_a_key_no_authorization_is_sent(make, server, trajectories):
    make().top_k(trajectories, K)
    assert "Authorization" not in server.headers[0]


def test_a_key_that_cannot_be_sent_is_not_shown(make, monkeypatch):
    monkeypatch.setenv(completions_client.API_KEY, "sec\nret")
    with raises_one_line("TEXTGEN_API_KEY must be printable ASCII", "its value is not shown"):
        make()


@pytest.mark.parametrize("beam_size", [1, 3])
def test_texts_equal_those_of_the_local_teacher(make, server, teacher, examples, beam_size):
    expert, local = make(), NeuralExpert(teacher)
    written, expected = (
        e.write(examples, max_steps=6, beam_size=beam_size) for e in (expert, local)
    )
    assert torch.equal(written.reference, expected.reference)
    assert torch.equal(written.source, examples.source)
    assert expert.queries.tokens == local.queries.tokens
    ends = (written.reference == expert.special.end).any(1)
    assert ends.any()
    assert len({tuple(row) for row in written.reference.tolist()}) > 1
    asked = len(server.asked)
    make().write(examples, max_steps=6, beam_size=beam_size)
    assert len(server.asked) == asked


def test_n_best_texts_equal_those_of_the_local_teacher(make, teacher, examples):
    texts, expected = (
        e.write_n_best(examples, max_steps=6, beam_size=3) for e in (make(), NeuralExpert(teacher))
    )
    assert torch.equal(texts, expected)


def test_completions_equal_those_of_the_local_teacher(make, teacher, examples):
    prefix = torch.nn.functional.pad(examples.reference, (0, 2))
    length = torch.arange(ROWS) % 4
    length[0] = prefix.shape[1]  # nothing to complete
    texts, expected = (
        e.complete(examples.expert_view, prefix, length) for e in (make(), NeuralExpert(teacher))
    )
    assert torch.equal(texts, expected)


def test_texts_without_token_ids_are_tokenized_again(make, server, tokenizer, teacher, examples):
    def as_text(answer):
        for choice in answer["choices"]:
            choice["text"] = " " + tokenizer.decode([choice.pop("token_ids")])[0]
        return answer

    server.changes.append(as_text)
    written = make().write(examples, max_steps=6, beam_size=1)
    expected = NeuralExpert(teacher).write(examples, max_steps=6, beam_size=1)
    assert torch.equal(written.reference, expected.reference)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"finish_reason": None}, 'have the finish_reason "stop" or "length"'),
        ({"token_ids": "3 4"}, "hold token_ids or a text"),
        ({"token_ids": [3, 2.0]}, "hold token_ids or a text"),
        ({"token_ids": None, "text": None}, "hold token_ids or a text"),
        ({"token_ids": [3, 99]}, "written in tokens below 12, none of them padding, got [3, 99]"),
        ({"token_ids": [3, 0, 2]}, "none of them padding, got [3, 0]"),
    ],
)
def test_a_malformed_text_raises_one_line_and_stores_nothing(
    make, server, examples, choice, message
):
    def spoil(answer):
        answer["choices"][2] |= choice
        return answer

    server.changes.append(spoil)
    expert = make()
    with raises_one_line(message):
        expert.write(examples, max_steps=6, beam_size=1)
    assert_nothing_was_stored(expert)


def test_samples_depend_on_the_generator(make, examples):
    def draw(seed, sampling):
        generator = torch.Generator().manual_seed(seed)
        return make().sample(examples, max_steps=6, sampling=sampling, generator=generator)

    once, again, other = (draw(seed, Sampling(temperature=2.0)).reference for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    greedy = make().write(examples, max_steps=6, beam_size=1).reference
    assert torch.equal(draw(1, Sampling(top_k=1)).reference, greedy)


def test_unsupported_queries_raise(make, trajectories):
    expert = make()
    for ask in (
        lambda: expert.logits(trajectories),
        lambda: expert.start(trajectories.source, 5),
        lambda: expert.step(None, None, None),
        lambda: expert.top_k(trajectories, K + 1),
    ):
        with raises_one_line("a remote teacher must be queried for texts or for its 4", "imitkd"):
            ask()
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        expert.top_k(trajectories, 0)
    with pytest.raises(ValueError, match="k must be at most 12"):
        make(k=13)
    assert (expert.vocab_size, expert.largest_k) == (12, K)


def test_without_the_extra_the_error_names_it(tmp_path, tokenizer, monkeypatch):
    for module in ("bounded_http", "completions_client", "remote"):
        monkeypatch.delitem(sys.modules, f"textgen_env.experts.{module}")
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with raises_one_line(
        "needs the extra remote, which is not installed (", "pip install 'textgen-env[remote]'"
    ):
        RemoteTeacher("http://host/v1", "m", tmp_path).build(tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_served_pretrained_causal_model_equals_the_local_one(family, tmp_path):
    folder = save_family(FAMILIES[family], tmp_path / "model")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    pairs = [Pair(text, " ".join(text.split()[::-1])) for text in TEXTS]
    task = with_expert_prompts(
        TextTask("w", tokenizer, pairs, pairs, pairs, 9, 9, {}), "{source} a"
    )
    examples = encode(pairs, task)
    trajectories = Trajectories.from_examples(examples, tokenizer.special)
    served = AutoModelForCausalLM.from_pretrained(folder).eval()
    with Server(Causal(served, tokenizer.special.end)) as server:
        teacher = RemoteTeacher(server.url, "small", folder, cache=tmp_path / "labels.sqlite", k=K)
        expert = teacher.build(tokenizer)
        assert_same_labels(expert, model, trajectories)
        written = expert.write(examples, max_steps=6, beam_size=1).reference
        expert.cache.close()
    expected = NeuralExpert(model).write(examples, max_steps=6, beam_size=1).reference
    assert torch.equal(written, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "url must be http:// or https:// with a host"),
        ({"k": 2}, "k must be at least 3, got 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"timeout": math.inf}, "at most 86400 seconds, got inf"),
        ({"retries": -1}, "retries must be at least 0"),
        ({"prompt": "Translate"}, "prompt must have the field"),
    ],
)
def test_settings_are_checked(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RemoteTeacher(**{"url": "http://host/v1", "model": "m", "tokenizer": tmp_path} | settings)
