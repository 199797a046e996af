"""Pretrained models read several tokens in one pass, and go back, each row by itself."""

import pytest
import torch

from tests.support.pretrained import FAMILIES, SHARED_POSITIONS, SLIDING, TEXTS, save_family
from textgen_env.generation.decoding import greedy
from textgen_env.generation.speculative import SpeculativeDecoder
from textgen_env.models.sequence_model import BlockModel, RewindableCache
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode_sources

BLOCKS, COUNT = 4, 3
STEPS = BLOCKS * COUNT


@pytest.fixture(scope="module", params=[*FAMILIES, "sliding"])
def loaded(request, tmp_path_factory):
    """Return a model of a family and sources of different lengths."""
    family = {**FAMILIES, "sliding": SLIDING}[request.param]
    folder = save_family(family, tmp_path_factory.mktemp("family") / request.param)
    return load_model(folder), encode_sources(TEXTS, load_tokenizer(folder))


def read(model, source, text):
    """Return the logits (T, V) of one source's text, token by token."""
    cache, logits = model.start(source, STEPS), []
    for token in text:
        answer, cache = model.step(torch.tensor([token]), cache)
        logits.append(answer[0])
    return torch.stack(logits)


@torch.no_grad()
@pytest.mark.parametrize("by_block", [True, False])
def test_rows_go_back_each_to_a_step_of_its_own(loaded, by_block):
    """Rows read blocks, keep a part of each, and have the logits of what they kept alone."""
    model, source = loaded
    draws, rows = torch.Generator().manual_seed(0), torch.arange(len(source))
    texts = [[] for _ in rows]
    cache = model.start(source, STEPS)
    assert isinstance(model, BlockModel)
    assert isinstance(cache, RewindableCache)
    for turn in range(BLOCKS):
        block = torch.randint(5, 25, (len(rows), COUNT), generator=draws)
        unread = torch.tensor([not texts[row] for row in rows])
        block[unread, 0] = model.special.start
        kept = torch.randint(0, COUNT + 1, (len(rows),), generator=draws)
        history, logits = [cache], []
        if by_block:
            logits, after = model.step_block(block, cache)
            history += after
        else:
            for token in block.unbind(1):
                answer, each = model.step(token, history[-1])
                history.append(each)
                logits.append(answer)
            logits = torch.stack(logits, 1)
        cache = history[-1].rewind(history, kept)
        for place, row in enumerate(rows.tolist()):
            alone = read(model, source[row : row + 1], texts[row] + block[place].tolist())
            torch.testing.assert_close(logits[place], alone[-COUNT:], rtol=1e-4, atol=1e-4)
            texts[row] += block[place, : kept[place]].tolist()
        if turn == 1:
            left = torch.tensor([4, 0, 3])
            rows, cache = rows[left], cache.select_rows(left)


@torch.no_grad()
def test_rows_with_one_position_for_all_go_back_together(tmp_path):
    folder = save_family(SHARED_POSITIONS, tmp_path / "m2m")
    model = load_model(folder)
    source = encode_sources(TEXTS, load_tokenizer(folder))
    cache = model.start(source, 10)
    block = torch.full((len(source), COUNT), 7)
    block[:, 0] = model.special.start
    _, after = model.step_block(block, cache)
    with pytest.raises(
        ValueError, match=r"must all keep as many tokens.* got \[1, 2\]: decode one"
    ):
        after[-1].rewind([cache, *after], torch.tensor([2, 2, 1, 2, 2]))
    cache = after[-1].rewind([cache, *after], torch.full((len(source),), 1))
    logits, _ = model.step(block[:, 1], cache)
    for row, found in zip(source, logits, strict=True):
        row = row[row != model.special.pad][None]
        alone = read(model, row, block[0, :2].tolist())[-1]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_speculative_decoding_writes_the_targets_greedy_texts(loaded):
    model, source = loaded
    decoder = SpeculativeDecoder(model, COUNT)
    assert torch.equal(decoder(model, source, STEPS), greedy(model, source, STEPS))
    assert decoder.counts.tokens_per_pass > 2


def test_so_it_does_with_another_draft(tmp_path):
    folders = [save_family(FAMILIES["marian"], tmp_path / str(seed), seed) for seed in range(2)]
    target, draft = map(load_model, folders)
    source = encode_sources(TEXTS, load_tokenizer(folders[0]))
    decoder = SpeculativeDecoder(draft, COUNT)
    assert torch.equal(decoder(target, source, STEPS), greedy(target, source, STEPS))
    assert decoder.counts.accepted < decoder.counts.verified
