from functools import partial

import pytest
import torch

from textgen_env import dynamics
from textgen_env.experts.expert import Expert, NeuralExpert, NoExpert
from textgen_env.experts.top_k import TopK, top_k_and_tail
from textgen_env.generation.beam_search import decoder_of, n_best
from textgen_env.generation.decoding import decode_all, sample
from textgen_env.generation.sampling import Sampling
from textgen_env.models import hidden_states
from textgen_env.tasks.task import encode
from textgen_env.types import ShapeError, Trajectories


@pytest.fixture
def examples(tiny_task):
    return encode(tiny_task.validation, tiny_task)


@pytest.fixture
def trajectories(tiny_task, examples):
    return Trajectories.from_examples(examples, tiny_task.tokenizer.special)


def test_logits_are_the_teachers(tiny_teacher, trajectories):
    logits = NeuralExpert(tiny_teacher).logits(trajectories)
    expected = tiny_teacher.sequence_logits(trajectories.source, trajectories.actions)
    assert torch.equal(logits, expected)


def test_the_best_action_is_the_most_probable_token_but_padding_and_start(
    tiny_teacher, trajectories
):
    expert = NeuralExpert(tiny_teacher)
    probabilities = expert.logits(trajectories).softmax(-1)
    probabilities[..., [expert.special.pad, expert.special.start]] = 0
    best = probabilities.gather(-1, expert.best_actions(trajectories)[..., None]).squeeze(-1)
    counts = trajectories.mask
    assert torch.equal(best[counts], probabilities.max(-1).values[counts])
    assert not expert.best_actions(trajectories)[~counts].any()


def test_no_gradient_reaches_the_teacher(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    assert not expert.logits(trajectories).requires_grad
    assert not expert.best_actions(trajectories).requires_grad


def test_a_bfloat16_teacher_answers_in_bfloat16(tiny_teacher, trajectories):
    expected = NeuralExpert(tiny_teacher).logits(trajectories)
    logits = NeuralExpert(tiny_teacher.bfloat16()).logits(trajectories)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)


def test_every_query_is_counted(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    expert.logits(trajectories)
    expert.best_actions(trajectories)
    assert expert.queries.forwards == 2
    assert expert.queries.tokens == 2 * int(trajectories.mask.sum())
    assert expert.queries.seconds > 0


def test_padding_is_not_counted(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    assert not trajectories.mask.all(), "the test needs padding"
    expert.logits(trajectories)
    assert expert.queries.tokens < trajectories.actions.numel()


@pytest.mark.parametrize("beam_size", [1, 3])
def test_write_decodes_by_beam_search(tiny_task, examples, make_table_model, beam_size):
    teacher = make_table_model(tiny_task, 3)
    expert = NeuralExpert(teacher)
    written = expert.write(examples, max_steps=5, beam_size=beam_size)
    expected = decode_all(teacher, examples.source, 5, decoder=decoder_of(beam_size))
    assert torch.equal(written.source, examples.source)
    assert torch.equal(written.reference, expected)
    tokens = int((expected != teacher.special.pad).sum())
    assert expert.queries.tokens == beam_size * tokens
    assert expert.queries.forwards == 1


def test_n_best_texts_are_those_of_beam_search(tiny_task, examples, make_table_model):
    teacher = make_table_model(tiny_task, 3)
    expert = NeuralExpert(teacher)
    written = expert.write_n_best(examples, max_steps=5, beam_size=3)
    expected, _ = n_best(teacher, examples.source, 5, count=3, beam_size=3)
    assert torch.equal(written, expected)
    best = expert.write(examples, max_steps=5, beam_size=3)
    assert torch.equal(written[:, 0], best.reference)
    assert not torch.equal(written[:, 1], best.reference)


def test_every_token_of_the_n_best_texts_is_counted(tiny_task, examples, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    written = expert.write_n_best(examples, max_steps=5, beam_size=3)
    assert expert.queries.tokens == int((written != expert.special.pad).sum())
    assert expert.queries.forwards == 1


def test_samples_are_those_of_the_sampling_decoder(tiny_task, examples, make_table_model):
    teacher = make_table_model(tiny_task, 3)
    expert, sampling = NeuralExpert(teacher), Sampling(top_k=4)
    drawn = expert.sample(
        examples, max_steps=5, sampling=sampling, generator=torch.Generator().manual_seed(4)
    )
    decoder = partial(sample, sampling=sampling, generator=torch.Generator().manual_seed(4))
    assert torch.equal(drawn.reference, decode_all(teacher, examples.source, 5, decoder=decoder))
    assert torch.equal(drawn.source, examples.source)
    assert expert.queries.tokens == int((drawn.reference != teacher.special.pad).sum())


def test_the_default_sample_steps_the_expert(tiny_task, examples, make_table_model):
    """Compare the first tokens of 3,000 samples with the teacher's probabilities."""

    class Stepping(NeuralExpert):
        sample = Expert.sample

    expert = Stepping(make_table_model(tiny_task, 3))
    generator = torch.Generator().manual_seed(0)
    many = examples.select(torch.zeros(3000, dtype=torch.long))
    drawn = expert.sample(many, max_steps=2, sampling=Sampling(), generator=generator).reference
    assert expert.queries.tokens == int((drawn != expert.special.pad).sum())
    logits = expert.logits(Trajectories.from_examples(many, expert.special))[0, 0]
    probs = logits.index_fill(0, torch.tensor([0, 1]), float("-inf")).softmax(0)
    shares = drawn[:, 0].bincount(minlength=len(probs)) / 3000
    assert (shares - probs).abs().max() < 0.03
    ended = drawn[:, 0] == expert.special.end
    assert 0 < ended.sum() < 3000
    assert drawn[ended, 1].eq(expert.special.pad).all()


def test_prefixes_are_completed_with_the_best_actions(tiny_task, examples, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    prefix = torch.nn.functional.pad(examples.reference, (0, 3))
    length = torch.arange(len(examples)) % 4
    texts = expert.complete(examples.source, prefix, length)
    ends_itself = ((prefix == 2) & (torch.arange(prefix.shape[1]) < length[:, None])).any(1)
    mask = texts != expert.special.pad
    assert (mask.sum(1) >= length)[~ends_itself].all()
    whole = Trajectories(examples.source, texts, torch.zeros_like(texts), mask, prefix)
    best = expert.best_actions(whole)
    for row, kept in enumerate(length.tolist()):
        assert torch.equal(texts[row, :kept], prefix[row, :kept])
        written = mask[row].clone()
        written[:kept] = False
        assert torch.equal(texts[row][written], best[row][written])
        ended = (texts[row] == expert.special.end).nonzero()
        assert mask[row].sum() == (ended[0] + 1 if len(ended) else prefix.shape[1])


def test_a_finished_text_is_not_completed(examples, tiny_task, make_table_model):
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    whole = torch.full_like(examples.reference[:, 0], examples.reference.shape[1])
    texts = expert.complete(examples.source, examples.reference, whole)
    assert torch.equal(texts, examples.reference)
    assert expert.queries.tokens == int((texts != expert.special.pad).sum())


def test_without_an_expert_the_error_names_the_remedy(examples, trajectories):
    expert = NoExpert()
    for ask in (
        lambda: expert.logits(trajectories),
        lambda: expert.best_actions(trajectories),
        lambda: expert.write(examples, max_steps=5, beam_size=1),
        lambda: expert.write_n_best(examples, max_steps=5, beam_size=2),
        lambda: expert.sample(examples, max_steps=5, sampling=Sampling(), generator=None),
    ):
        with pytest.raises(RuntimeError, match=r"run has none: give a teacher.*mle"):
            ask()


def test_top_k_and_the_tail_are_the_whole_distribution(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    counts = trajectories.mask
    whole = expert.logits(trajectories)[counts].double().softmax(-1)
    label = expert.top_k(trajectories, 3)
    held = label.log_probs[counts].double().exp()
    torch.testing.assert_close(held, whole.gather(-1, label.tokens[counts]), rtol=1e-5, atol=0)
    torch.testing.assert_close(held, whole.sort(-1, descending=True).values[..., :3])
    sums = held.sum(-1) + label.tail_log_prob[counts].double().exp()
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-6, atol=0)
    assert label.log_probs.dtype == label.tail_log_prob.dtype == torch.float32


def test_with_all_tokens_the_tail_is_empty(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    label = expert.top_k(trajectories, expert.vocab_size)
    counts = trajectories.mask
    expected = expert.logits(trajectories)[counts].log_softmax(-1)
    tokens, log_probs = label.tokens[counts], label.log_probs[counts]
    torch.testing.assert_close(torch.empty_like(expected).scatter(-1, tokens, log_probs), expected)
    assert (label.tail_log_prob[counts] == float("-inf")).all()


def test_a_small_tail_is_not_rounded_to_zero():
    """Sum the tail, because one minus the other probability is 0 in float32."""
    logits = torch.tensor([40.0, 0.0, 1.0, -3.0])
    tail = top_k_and_tail(logits, 1)["tail_log_prob"]
    whole = logits.double().log_softmax(0)
    assert tail.item() == pytest.approx(whole[1:].logsumexp(0).item(), rel=1e-6)


def test_top_k_does_not_depend_on_the_chunks(tiny_teacher, trajectories, monkeypatch):
    expert = NeuralExpert(tiny_teacher)
    whole = expert.top_k(trajectories, 2)
    monkeypatch.setattr(hidden_states, "MIN_CHUNK_ROWS", 7)
    monkeypatch.setattr(hidden_states, "CHUNK_NUMEL_CPU", 1)
    parts = expert.top_k(trajectories, 2)
    for name in ("tokens", "log_probs", "tail_log_prob"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))


def test_top_k_is_one_query(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    expert.top_k(trajectories, 2)
    assert expert.queries.forwards == 1
    assert expert.queries.tokens == int(trajectories.mask.sum())


@pytest.mark.parametrize("k", [0, 1000])
def test_top_k_refuses_a_k_out_of_range(tiny_teacher, trajectories, k):
    size = tiny_teacher.vocab_size
    with pytest.raises(ValueError, match=f"k must be from 1 to {size}, .* got {k}"):
        NeuralExpert(tiny_teacher).top_k(trajectories, k)


def test_top_k_labels_check_their_shapes():
    tokens, log_probs = torch.zeros(2, 3, 4).long(), torch.zeros(2, 3, 4)
    with pytest.raises(ShapeError, match="log_probs must have shape"):
        TopK(tokens, log_probs[..., :2], torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="tail_log_prob must have shape"):
        TopK(tokens, log_probs, torch.zeros(2, 4))


def test_a_padded_vocabulary_is_truncated_in_every_answer(tiny_task, examples, make_table_model):
    """Use a teacher whose most probable tokens are beyond the tokenizer's vocabulary."""
    teacher, size = make_table_model(tiny_task, 3), tiny_task.tokenizer.vocab_size - 3
    with torch.no_grad():
        teacher.tables[..., size:] += 100
    kept = examples.select((examples.source < size).all(1) & (examples.reference < size).all(1))
    trajectories = Trajectories.from_examples(kept, teacher.special)
    whole, expert = NeuralExpert(teacher), NeuralExpert(teacher, vocab_size=size)
    assert (whole.vocab_size, expert.vocab_size) == (teacher.vocab_size, size)
    assert torch.equal(expert.logits(trajectories), whole.logits(trajectories)[..., :size])
    assert (whole.best_actions(trajectories) >= size)[trajectories.mask].all()
    assert (expert.best_actions(trajectories) < size).all()
    tail = expert.top_k(trajectories, size).tail_log_prob
    assert (tail[trajectories.mask] == float("-inf")).all()
    state = dynamics.initial(kept.source, 5, teacher.special)
    start = torch.full((len(kept),), teacher.special.start)
    logits, _ = expert.step(state, start, expert.start(kept.source, 5))
    assert torch.equal(logits, expert.logits(trajectories)[:, 0])
    for beam_size in (1, 3):
        written = expert.write(kept, max_steps=5, beam_size=beam_size)
        assert (written.reference < size).all()


def test_the_vocabulary_is_unknown_by_default():
    assert NoExpert().vocab_size is None
