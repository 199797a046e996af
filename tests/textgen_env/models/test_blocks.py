"""Reading several tokens in one pass, and going back, each row to a step of its own."""

import pytest
import torch

from tests.textgen_env.models.test_sequence_models import (
    CONFIGS,
    SOURCE_LENGTHS,
    START,
    build,
    padded,
)
from textgen_env.models.sequence_model import BlockModel, RewindableCache

READ, COUNT = 3, 4
KEPT = torch.tensor([2, 0, 4, 1, 3])


@pytest.fixture(params=CONFIGS)
def model(request):
    return build(request.param).requires_grad_(False).double()


@pytest.fixture
def source():
    return padded(SOURCE_LENGTHS, seed=0)


@pytest.fixture
def tokens():
    """Tokens that each row reads: the start token, and others that end no text."""
    draws = torch.Generator().manual_seed(1)
    read = torch.randint(3, 20, (5, READ + COUNT + 6), generator=draws)
    read[:, 0] = START
    return read


def stepped(model, cache, tokens):
    """Return the logits after each token, and the caches before and after each."""
    logits, history = [], [cache]
    for token in tokens.unbind(1):
        answer, cache = model.step(token, cache)
        logits.append(answer)
        history.append(cache)
    return torch.stack(logits, 1) if logits else None, history


def after_some(model, source, tokens):
    return stepped(model, model.start(source, 20), tokens[:, :READ])[1][-1]


def test_models_of_this_project_read_blocks(model, source):
    assert isinstance(model, BlockModel)
    assert isinstance(model.start(source, 20), RewindableCache)


@pytest.mark.parametrize("read", [0, READ])
@pytest.mark.parametrize("count", [1, COUNT, 20 - READ])
def test_a_block_has_the_logits_of_its_steps(model, source, tokens, read, count):
    tokens = tokens.repeat(1, 2)
    caches = [stepped(model, model.start(source, 20), tokens[:, :read])[1][-1] for _ in range(2)]
    block = tokens[:, read : read + count]
    expected, _ = stepped(model, caches[0], block)
    logits, history = model.step_block(block, caches[1])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert len(history) == count


def continued(model, source, tokens, kept, more):
    """Return the logits of steps through `more` after READ and each row's own kept tokens."""
    logits = []
    for row, number in enumerate(kept.tolist()):
        read = torch.cat([tokens[row, : READ + number], more[row]])[None]
        every, _ = stepped(model, model.start(source[row][source[row] > 0][None], 20), read)
        logits.append(every[0, -more.shape[1] :])
    return torch.stack(logits)


@pytest.mark.parametrize("by_block", [True, False])
def test_rows_go_back_each_to_a_step_of_its_own(model, source, tokens, by_block):
    cache, block = after_some(model, source, tokens), tokens[:, READ : READ + COUNT]
    history = [cache]
    history += (
        model.step_block(block, cache)[1] if by_block else stepped(model, cache, block)[1][1:]
    )
    cache = history[-1].rewind(history, KEPT)
    more = tokens[:, -3:]
    logits, _ = stepped(model, cache, more)
    expected = continued(model, source, tokens, KEPT, more)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_rows_go_back_again_and_again_and_are_selected(model, source, tokens):
    cache, rows = after_some(model, source, tokens), torch.arange(5)
    texts = [row[:READ].tolist() for row in tokens]
    draws = torch.Generator().manual_seed(2)
    for turn in range(4):
        block = torch.randint(3, 20, (len(rows), COUNT), generator=draws)
        kept = torch.randint(0, COUNT + 1, (len(rows),), generator=draws)
        _, after = model.step_block(block, cache)
        cache = after[-1].rewind([cache, *after], kept)
        for row, each, number in zip(rows.tolist(), block.tolist(), kept.tolist(), strict=True):
            texts[row] += each[:number]
        if turn == 1:
            left = torch.tensor([4, 0, 3])
            rows, cache = rows[left], cache.select_rows(left)
    logits, _ = model.step_block(tokens[rows, -1:], cache)
    for row, found in zip(rows.tolist(), logits[:, 0], strict=True):
        read = torch.tensor([[*texts[row], int(tokens[row, -1])]])
        every, _ = stepped(model, model.start(source[row][source[row] > 0][None], 20), read)
        torch.testing.assert_close(found, every[0, -1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_states_keep_their_precision(model, source, tokens, dtype):
    model = model.to(dtype)
    cache = after_some(model, source, tokens)
    logits, after = model.step_block(tokens[:, READ : READ + COUNT], cache)
    rewound = after[-1].rewind([cache, *after], KEPT)
    assert logits.dtype == dtype
    again, _ = model.step(tokens[:, -1], rewound)
    assert again.isfinite().all()
