"""Contract of `SequenceModel`, tested on all architectures."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.support.toy import attending
from tests.support.waiting import OnMetaDevice
from textgen_env.models import cache_ops, hybrid, kv_cache, recurrent_cache, source_memory
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.types import SpecialTokens

VOCAB = 40
SOURCE_LENGTHS, TARGET_LENGTHS = (7, 2, 5, 1, 6), (4, 6, 1, 5, 3)
PAD, START, END = SpecialTokens()
CONFIGS = {
    "transformer": TransformerConfig(VOCAB, width=16, num_heads=2, feed_forward=32),
    "recurrent": RecurrentConfig(VOCAB, width=16),
    "ssru": HybridConfig(VOCAB, width=16, num_heads=2, feed_forward=32, unit="ssru"),
    "sru": HybridConfig(VOCAB, width=16, num_heads=2, feed_forward=32, unit="sru"),
    "sru_pp": HybridConfig(VOCAB, width=16, num_heads=2, feed_forward=32, unit="sru_pp"),
    "gru": HybridConfig(VOCAB, width=16, num_heads=2, feed_forward=32, unit="gru"),
}


def build(name):
    torch.manual_seed(0)
    return attending(CONFIGS[name].build().eval())


@pytest.fixture(params=CONFIGS)
def model(request):
    return build(request.param)


def padded(lengths, seed):
    """Draw random rows that end with END, with PAD after it."""
    tokens = torch.randint(3, VOCAB, (len(lengths), max(lengths)))
    tokens = tokens.random_(3, VOCAB, generator=torch.Generator().manual_seed(seed))
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1], row[length:] = END, PAD
    return tokens


@pytest.fixture
def source():
    return padded(SOURCE_LENGTHS, seed=0)


@pytest.fixture
def actions():
    return padded(TARGET_LENGTHS, seed=1)


def steps(model, cache, actions, start=START):
    """Return the logits (B, T, V) of stepping through `actions`, and the cache afterwards."""
    previous, logits = torch.full_like(actions[:, 0], start), []
    for action in actions.unbind(1):
        step_logits, cache = model.step(previous, cache)
        logits.append(step_logits)
        previous = action
    return torch.stack(logits, dim=1), cache


WRITTEN = padded(TARGET_LENGTHS, seed=1) != PAD  # after a row's end its logits have no meaning


@torch.no_grad()
def test_steps_give_the_logits_of_the_whole_sequence(model, source, actions):
    logits, _ = steps(model, model.start(source, actions.shape[1]), actions)
    whole = model.sequence_logits(source, actions)
    assert logits.shape == whole.shape == (*actions.shape, VOCAB)
    torch.testing.assert_close(logits[WRITTEN], whole[WRITTEN], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_steps_give_the_logits_of_the_whole_sequence_to_the_last_digits(model, source, actions):
    model = model.double()
    logits, _ = steps(model, model.start(source, actions.shape[1]), actions)
    assert (logits - model.sequence_logits(source, actions))[WRITTEN].abs().max() < 1e-10


@torch.no_grad()
def test_steps_give_the_logits_of_the_whole_sequence_in_bfloat16(model, source, actions):
    model = model.to(torch.bfloat16)
    logits, _ = steps(model, model.start(source, actions.shape[1]), actions)
    whole = model.sequence_logits(source, actions)
    assert logits.dtype == whole.dtype == torch.bfloat16
    torch.testing.assert_close(logits[WRITTEN], whole[WRITTEN], rtol=0.1, atol=0.1)


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbors(model, source, actions):
    together = model.sequence_logits(source, actions)
    for row, (read, written) in enumerate(zip(SOURCE_LENGTHS, TARGET_LENGTHS, strict=True)):
        alone = model.sequence_logits(source[row, None, :read], actions[row, None, :written])
        torch.testing.assert_close(alone[0], together[row, :written], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_wider_padding_changes_nothing(model, source, actions):
    wide = model.sequence_logits(F.pad(source, (0, 3)), F.pad(actions, (0, 2)))
    narrow = model.sequence_logits(source, actions)
    torch.testing.assert_close(wide[:, : actions.shape[1]], narrow, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_embedding_of_padding_influences_nothing(model, source, actions):
    before = model.sequence_logits(source, actions)
    model.embedding.weight[PAD] += 10
    after = model.sequence_logits(source, actions)
    written = actions != PAD
    assert torch.equal(before[written][:, PAD + 1 :], after[written][:, PAD + 1 :])


@torch.no_grad()
def test_logits_depend_on_earlier_actions_only(model, source, actions):
    changed = actions.clone()
    changed[:, 3] = (actions[:, 3] + 1) % VOCAB
    before, after = (model.sequence_logits(source, written) for written in (actions, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


@torch.no_grad()
def test_selecting_rows_then_stepping_is_stepping_then_selecting(model, source, actions):
    index = torch.tensor([3, 3, 0, 4, 1, 1, 2])
    _, cache = steps(model, model.start(source, 6), actions[:, :3])
    selected = cache.select_rows(index)
    first, _ = steps(model, selected, actions[index, 3:], start=5)
    second, _ = steps(model, cache, actions[:, 3:], start=5)
    torch.testing.assert_close(first, second[index], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_repeated_rows_share_their_source_and_can_be_reordered(model, source, actions):
    """Step as beam search does: copies of each row, which change places with each other."""
    copies, places = 3, torch.tensor([2, 0, 0])  # of the copy that each one continues
    rows = torch.arange(len(source)).repeat_interleave(copies)
    texts = padded([6] * len(rows), seed=4)
    _, cache = steps(model, model.start(source, 6).repeat_rows(copies), texts[:, :3])
    index = rows * copies + places.repeat(len(source))
    got, _ = steps(model, cache.reorder_rows(index), texts[:, 3:], start=5)
    written = torch.cat([texts[index, :2], torch.full((len(rows), 1), 5), texts[:, 3:]], dim=1)
    expected = model.sequence_logits(source[rows], written)
    torch.testing.assert_close(got, expected[:, 3:], rtol=1e-4, atol=1e-4)


@pytest.fixture(params=[True, False], ids=["host sync is free", "host sync is avoided"])
def host_sync(request, monkeypatch):
    """Set whether caches may read masks on the host when they scatter rows."""
    for module in (kv_cache, source_memory, recurrent_cache, hybrid, cache_ops):
        monkeypatch.setattr(module, "host_sync_is_free", lambda device: request.param)


@torch.no_grad()
@pytest.mark.usefixtures("host_sync")
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_reset_rows_start_over_and_the_others_continue(model, source, ahead):
    actions = padded([6] * len(source), seed=1)
    mask, index = torch.tensor([True, False, False, True, False]), torch.tensor([2, 0, 0, 6, 0])
    others, texts = padded((3, 7, 2, 6, 1, 7, 4), seed=2), padded((4, 4, 4, 4, 4, 4, 4), seed=3)
    previous = F.pad(texts, (1, 0), value=START)
    fresh = model.start(others, 6)
    for step in range(ahead):
        _, fresh = model.step(previous[:, step], fresh)
    _, cache = steps(model, model.start(source, 6), actions[:, :3])
    cache = cache.reset_rows(mask, fresh, index)
    got = []
    for step in range(2):
        mixed = previous[index, ahead + step].where(mask, actions[:, 2 + step])
        logits, cache = model.step(mixed, cache)
        got.append(logits)
    reset = model.sequence_logits(others[index], texts[index])[:, ahead : ahead + 2]
    expected = reset.where(mask[:, None, None], model.sequence_logits(source, actions)[:, 3:5])
    written = WRITTEN[:, 3:5] | mask[:, None]
    torch.testing.assert_close(
        torch.stack(got, 1)[written], expected[written], rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.usefixtures("host_sync")
@pytest.mark.parametrize(("old", "new"), [(40, 9), (9, 40)], ids=["narrower", "wider"])
def test_rows_are_reset_with_sources_of_another_width(model, old, new):
    """Reset rows so that the cache is trimmed to narrower sources and grows again."""
    every, same = torch.ones(3, dtype=torch.bool), torch.arange(3)
    sources = padded((old, old - 2, 5), seed=6), padded((new, 3, new - 1), seed=7)
    texts = padded((38, 38, 38), seed=8)
    _, cache = steps(model, model.start(sources[0], 38), texts[:, :37])
    cache = cache.reset_rows(every & (same > 0), model.start(sources[1], 38), same)
    cache = cache.reset_rows(same == 0, model.start(sources[1], 38), same)
    got, _ = steps(model, cache, texts)
    expected = model.sequence_logits(sources[1], texts)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_row_at_the_limit_may_be_stepped_until_it_is_reset(model, source, actions):
    expected, _ = steps(model, model.start(source, 2), actions[:, :2])
    cache = model.start(source, 2)
    for _ in range(5):
        _, cache = model.step(actions[:, 0], cache)
    everywhere, same = torch.ones(len(source), dtype=torch.bool), torch.arange(len(source))
    cache = cache.reset_rows(everywhere, model.start(source, 2), same)
    got, _ = steps(model, cache, actions[:, :2])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def poisoned_memory():
    """Fill uninitialized memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@torch.no_grad()
@pytest.mark.usefixtures("poisoned_memory")
def test_rows_of_different_ages_read_no_memory_that_was_not_written(model, source):
    previous = source[:, 0]
    cache = model.start(source, 6)
    for _ in range(2):
        _, cache = model.step(previous, cache)
    same = torch.arange(len(source))
    cache = cache.reset_rows(same == 0, model.start(source, 6), same)
    cache = cache.select_rows(torch.tensor([0, 1]))
    for _ in range(4):
        logits, cache = model.step(previous[:2], cache)
        assert logits.isfinite().all()


def test_gradients_reach_every_parameter(model, source, actions):
    logits = model.train().sequence_logits(source, actions)
    F.cross_entropy(logits.flatten(0, 1), actions.flatten(), ignore_index=PAD).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_autocast_changes_logits_and_gradients_little(model, source, actions):
    def logits_and_gradient():
        logits = model.sequence_logits(source, actions).float()
        loss = F.cross_entropy(logits.flatten(0, 1), actions.flatten(), ignore_index=PAD)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return logits, torch.cat([gradient.flatten() for gradient in gradients])

    exact = logits_and_gradient()
    with torch.autocast("cpu", torch.bfloat16):
        near = logits_and_gradient()
    for ours, theirs in zip(near, exact, strict=True):
        assert (ours - theirs).norm() < 0.06 * theirs.norm()


def test_training_repeats_under_a_seed(model, source, actions):
    model.train()
    torch.manual_seed(3)
    first, second = (model.sequence_logits(source, actions) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(model.sequence_logits(source, actions), first)
    assert not torch.equal(first, second)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [replace(config, vocab_size=1000, width=64) for config in CONFIGS.values()],
    ids=CONFIGS,
)
def test_logits_start_with_unit_scale(config):
    torch.manual_seed(0)
    tokens = torch.randint(3, 1000, (2, 16, 20))
    assert 0.85 < config.build().sequence_logits(*tokens).std() < 1.15


@pytest.mark.parametrize("name", CONFIGS)
def test_no_tensor_is_created_on_another_device_or_read_by_the_host(name, source, actions):
    with torch.device("meta"):
        model = CONFIGS[name].build()
    source, actions = source.to("meta"), actions.to("meta")
    with OnMetaDevice():
        with torch.no_grad():
            cache = model.start(source, 3)
            _, cache = model.step(actions[:, 0], cache)
            cache = cache.select_rows(actions[:, 1])
            mask, fresh = actions[:, 1] > 1, model.start(source, 3)
            model.step(actions[:, 0], cache.reset_rows(mask, fresh, actions[:, 1]))
        model.sequence_logits(source, actions).sum().backward()
