import torch

from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.decoded_rows import decoded_rows_told_to, note_decoded
from textgen_env.types import Examples


def test_decoding_tells_how_many_sources_are_done(writer, sources):
    examples = Examples(sources.repeat(4, 1), sources.repeat(4, 1))
    expert, counts = NeuralExpert(writer), []
    with decoded_rows_told_to(counts.append):
        told = expert.write(examples, max_steps=8, beam_size=2)
    assert counts == [64, 4 * len(sources) - 64]
    silent = expert.write(examples, max_steps=8, beam_size=2)
    assert torch.equal(told.reference, silent.reference)


def test_only_the_innermost_listener_is_told_and_none_after_the_block():
    outer, inner = [], []
    with decoded_rows_told_to(outer.append):
        with decoded_rows_told_to(inner.append):
            note_decoded(1)
        note_decoded(2)
    note_decoded(3)
    assert (outer, inner) == ([2], [1])
