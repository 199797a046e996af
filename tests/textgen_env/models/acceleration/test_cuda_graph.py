"""Tests of graphed models against the models themselves; on the host steps are not recorded."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.support.pretrained import FAMILIES, TEXTS, save_family
from tests.support.toy import attending, random_sources
from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.beam_search import beam_search
from textgen_env.generation.decoding import greedy, next_action
from textgen_env.models import cache_ops
from textgen_env.models.acceleration import cuda_graph as module
from textgen_env.models.acceleration.cuda_graph import (
    SOURCE_WIDTH_MULTIPLE,
    GraphedModel,
    capture_cuda_graph,
    with_cuda_graphs,
)
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import encode_sources
from textgen_env.types import SpecialTokens
from textgen_experiments.benchmarks.streaming import stream

STEPS = 20  # more than the increment of a cache's capacity
MODELS = {
    "transformer": lambda vocab_size: Transformer(TransformerConfig(vocab_size, 32, 2, 64)),
    "recurrent": lambda vocab_size: Recurrent(RecurrentConfig(vocab_size, 32)),
    "ssru": lambda vocab_size: Hybrid(HybridConfig(vocab_size, 32, 2, 64, unit="ssru")),
    "sru_pp": lambda vocab_size: attending(
        Hybrid(HybridConfig(vocab_size, 32, 2, 64, unit="sru_pp"))
    ),
    "gru": lambda vocab_size: Hybrid(HybridConfig(vocab_size, 32, 2, 64, unit="gru")),
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


@dataclass(frozen=True)
class Setting:
    """Device, with the way in which steps are recorded on it."""

    device: str

    def with_cuda_graphs(self, model):
        if self.device == "cuda":
            return with_cuda_graphs(model)
        return GraphedModel(model, lambda work: work)

    def model(self, name, vocab_size=30):
        torch.manual_seed(0)
        model = MODELS[name](vocab_size).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.mul_(3)  # so that texts vary
        return model.to(self.device)

    def sources(self, count, longest):
        return random_sources(count, longest).to(self.device)


@pytest.fixture(params=DEVICES)
def setting(request):
    return Setting(request.param)


@pytest.fixture(params=MODELS)
def model(request, setting):
    return setting.model(request.param)


def assert_near(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def steps(model, cache, tokens):
    """Return the logits (B, T, V) of stepping through `tokens`, and the cache afterwards."""
    logits = []
    for token in tokens.unbind(1):
        answer, cache = model.step(token, cache)
        logits.append(answer)
    return torch.stack(logits, 1), cache


def test_texts_are_those_of_the_model_in_batches_of_any_shape(setting, model):
    graphed = setting.with_cuda_graphs(model)
    for count, longest in ((5, 7), (3, 12), (5, 7), (4, SOURCE_WIDTH_MULTIPLE + 1)):
        source = setting.sources(count, longest)
        assert torch.equal(greedy(graphed, source, STEPS), greedy(model, source, STEPS))


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_of_pretrained_models_too(setting, name, tmp_path):
    save_family(FAMILIES[name], tmp_path)
    model = load_model(tmp_path).requires_grad_(False).to(setting.device)
    source = encode_sources(TEXTS, load_tokenizer(tmp_path)).to(setting.device)
    graphed = setting.with_cuda_graphs(model)
    expected = greedy(model, source, STEPS)
    for _ in range(2):  # recorded, and replayed from the start
        assert torch.equal(greedy(graphed, source, STEPS), expected)


def test_beam_search_finds_the_same(setting, model):
    source = setting.sources(4, 8)
    find = partial(beam_search, source=source, max_steps=STEPS, beam_size=3)
    got, expected = find(setting.with_cuda_graphs(model))[0], find(model)[0]
    assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_the_model(setting, model, dtype):
    model = model.to(dtype)
    source, tokens = setting.sources(6, SOURCE_WIDTH_MULTIPLE), setting.sources(6, STEPS)
    got, _ = steps(
        setting.with_cuda_graphs(model),
        setting.with_cuda_graphs(model).start(source, STEPS),
        tokens,
    )
    expected, _ = steps(model, model.start(source, STEPS), tokens)
    close = {"rtol": 0.05, "atol": 0.2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(got, expected, **close)


def test_two_batches_that_are_decoded_in_turn_stay_separate(setting, model):
    graphed, width = setting.with_cuda_graphs(model), SOURCE_WIDTH_MULTIPLE
    sources = [setting.sources(5, width), setting.sources(5, width).flip(0).roll(1, 1)]
    tokens = setting.sources(5, STEPS)
    caches, logits = [graphed.start(source, STEPS) for source in sources], ([], [])
    for token in tokens.unbind(1):
        for number in (0, 1):
            answer, caches[number] = graphed.step(token, caches[number])
            logits[number].append(answer)
    for source, answers in zip(sources, logits, strict=True):
        assert_near(torch.stack(answers, 1), steps(model, model.start(source, STEPS), tokens)[0])


def test_a_graphed_step_is_reused_once_its_batch_is_finished(setting, model):
    graphed, source = setting.with_cuda_graphs(model), setting.sources(5, 8)
    greedy(graphed, source, STEPS)
    steps_before = list(graphed._graphed_steps)
    assert steps_before
    for _ in range(3):
        greedy(graphed, source.roll(1, 0), STEPS)
    assert graphed._graphed_steps == steps_before


def test_no_more_graphed_steps_are_kept_than_the_limit(setting, model, monkeypatch):
    monkeypatch.setattr(module, "MAX_GRAPHS", 2)
    graphed = setting.with_cuda_graphs(model)
    for count in (2, 3, 4, 5, 2):
        source = setting.sources(count, 8)
        assert torch.equal(greedy(graphed, source, 6), greedy(model, source, 6))
        assert len(graphed._graphed_steps) <= 2


def test_graphed_steps_that_use_too_much_memory_are_dropped(setting, model, monkeypatch):
    monkeypatch.setattr(module, "MAX_GRAPH_BYTES", 0)
    graphed = setting.with_cuda_graphs(model)
    for count in (2, 3, 4):
        source, tokens = setting.sources(count, SOURCE_WIDTH_MULTIPLE), setting.sources(count, 6)
        for _ in range(2):
            got, _ = steps(graphed, graphed.start(source, 6), tokens)
            assert_near(got, steps(model, model.start(source, 6), tokens)[0])
        assert [len(each.logits) for each in graphed._graphed_steps] == [count]


def test_weights_may_change_in_place(setting, model):
    graphed, source = setting.with_cuda_graphs(model), setting.sources(5, 8)
    before = greedy(graphed, source, STEPS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.roll(1, 0))
    assert torch.equal(greedy(graphed, source, STEPS), greedy(model, source, STEPS))
    assert not torch.equal(greedy(graphed, source, STEPS), before)


def test_rows_are_reset_while_others_continue(setting, model):
    graphed = setting.with_cuda_graphs(model)
    source, tokens = setting.sources(6, SOURCE_WIDTH_MULTIPLE), setting.sources(6, STEPS)
    mask = torch.tensor([True, False, False, True, False, True], device=setting.device)
    index = torch.tensor([0, 0, 0, 1, 0, 2], device=setting.device)
    answers = []
    for each in (graphed, model):
        _, cache = steps(each, each.start(source, STEPS), tokens[:, :5])
        cache = cache.reset_rows(mask, each.start(source[3:].clone(), STEPS), index)
        answers.append(steps(each, cache, tokens[:, 5:10])[0])
    assert_near(*answers)


def test_rows_are_reset_from_a_cache_that_was_stepped_itself(setting, model):
    graphed = setting.with_cuda_graphs(model)
    source, tokens = setting.sources(4, SOURCE_WIDTH_MULTIPLE), setting.sources(4, STEPS)
    mask = torch.tensor([True, False, True, False], device=setting.device)
    index = torch.arange(4, device=setting.device)
    answers = []
    for each in (graphed, model):
        _, cache = steps(each, each.start(source, STEPS), tokens[:, :6])
        _, fresh = steps(each, each.start(source.flip(0), STEPS), tokens[:, :3])
        cache = cache.reset_rows(mask, fresh, index)
        answers.append(steps(each, cache, tokens[:, 6:9])[0])
    assert_near(*answers)


@pytest.mark.parametrize("name", MODELS)
def test_texts_streamed_through_slots_are_the_same(setting, name, tiny_task):
    model = setting.model(name, tiny_task.tokenizer.vocab_size)
    env = TextGenVectorEnv(
        tiny_task,
        5,
        reward=no_reward,
        autoreset_mode=AutoresetMode.SAME_STEP,
        device=setting.device,
    )
    indices = torch.arange(20, device=setting.device)
    behavior = partial(next_action, special=env.special)

    def written(student):
        return stream(env, lambda view: _by_student(behavior, view), indices, student)

    got, expected = written(setting.with_cuda_graphs(model)), written(model)
    assert torch.equal(got.actions, expected.actions)
    assert torch.equal(got.mask, expected.mask)


def _by_student(behavior, view):
    action = behavior(view.student_logits)
    return action, torch.zeros_like(action)


def test_an_expert_is_queried_at_every_step_and_its_logits_can_be_used_in_a_loss(setting, model):
    source, tokens = setting.sources(4, SOURCE_WIDTH_MULTIPLE), setting.sources(4, 3)
    expert = NeuralExpert(setting.with_cuda_graphs(model))
    with torch.inference_mode():
        greedy(expert.model, source, STEPS)  # the recorded steps are reused outside of this mode
    logits, _ = steps(expert.model, expert.start(source, STEPS), tokens)
    weight = torch.ones_like(logits, requires_grad=True)
    (weight * logits).sum().backward()
    assert torch.equal(weight.grad, logits)


def test_models_without_static_shapes_are_stepped_directly(setting, tiny_task, make_table_model):
    model = make_table_model(tiny_task, 0).to(setting.device)
    source = torch.tensor([[3, 2], [4, 2]], device=setting.device)
    graphed = setting.with_cuda_graphs(model)
    assert torch.equal(greedy(graphed, source, 4), greedy(model, source, 4))
    assert not graphed._graphed_steps


def test_steps_that_cannot_be_recorded_are_run_directly(setting, model):
    def refuse(work):
        raise RuntimeError("it waits")

    graphed, source = GraphedModel(model, refuse), setting.sources(4, 8)
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph.*error was: it waits"):
        written = greedy(graphed, source, STEPS)
    assert torch.equal(written, greedy(model, source, STEPS))
    assert torch.equal(greedy(graphed, source, STEPS), written), "there is only one warning"


def test_models_on_other_devices_are_returned_unchanged():
    model = MODELS["recurrent"](30)
    assert with_cuda_graphs(model) is model
    other = object()
    assert with_cuda_graphs(other) is other


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_the_device_is_recorded_as_a_graph():
    graphed = with_cuda_graphs(MODELS["recurrent"](30).cuda())
    assert isinstance(graphed, GraphedModel)
    assert graphed.capture is capture_cuda_graph


def test_all_capacity_is_reserved_at_once_where_steps_are_recorded(monkeypatch):
    from textgen_env.models import kv_cache

    model = Setting("cpu").model("transformer")
    source = random_sources(3, 8)
    assert model.step(source[:, 0], model.start(source, 40))[1].target.shape[4] < 40
    monkeypatch.setattr(kv_cache, "host_sync_is_free", lambda device: False)
    assert model.step(source[:, 0], model.start(source, 40))[1].target.shape[4] == 40
    assert cache_ops.host_sync_is_free(torch.device("cpu"))


def test_properties_and_sequence_logits_are_the_models():
    model = MODELS["transformer"](30).eval()
    graphed = GraphedModel(model, lambda work: work)
    assert (graphed.special, graphed.vocab_size) == (SpecialTokens(), 30)
    source, actions = random_sources(2, 5), random_sources(2, 4)
    assert_near(graphed.sequence_logits(source, actions), model.sequence_logits(source, actions))
