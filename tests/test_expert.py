import pytest
import torch

from textgen_env.beam_search import decoder_of
from textgen_env.decoding import decode_all
from textgen_env.expert import NeuralExpert, NoExpert
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories


@pytest.fixture
def examples(tiny_task):
    return encode(tiny_task.validation, tiny_task)


@pytest.fixture
def trajectories(tiny_task, examples):
    return Trajectories.from_examples(examples, tiny_task.tokenizer.special)


def test_answers_are_the_teachers_distributions(tiny_teacher, trajectories):
    logits = NeuralExpert(tiny_teacher).logits(trajectories)
    expected = tiny_teacher.sequence_logits(trajectories.source, trajectories.actions)
    assert torch.equal(logits, expected)


def test_the_best_action_is_the_most_probable_one_that_can_be_written(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    probabilities = expert.logits(trajectories).softmax(-1)
    probabilities[..., [expert.special.pad, expert.special.start]] = 0
    best = probabilities.gather(-1, expert.best_actions(trajectories)[..., None]).squeeze(-1)
    assert torch.equal(best, probabilities.max(-1).values)


def test_no_gradient_reaches_the_teacher(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    assert not expert.logits(trajectories).requires_grad
    assert not expert.best_actions(trajectories).requires_grad


def test_a_bfloat16_teacher_answers_in_its_precision(tiny_teacher, trajectories):
    expected = NeuralExpert(tiny_teacher).logits(trajectories)
    logits = NeuralExpert(tiny_teacher.bfloat16()).logits(trajectories)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1)


def test_every_answer_is_counted(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    expert.logits(trajectories)
    expert.best_actions(trajectories)
    assert expert.queries.forwards == 2
    assert expert.queries.tokens == 2 * int(trajectories.mask.sum())
    assert expert.queries.seconds > 0


def test_padding_is_not_counted(tiny_teacher, trajectories):
    expert = NeuralExpert(tiny_teacher)
    assert not trajectories.mask.all(), "the test wants padding"
    expert.logits(trajectories)
    assert expert.queries.tokens < trajectories.actions.numel()


@pytest.mark.parametrize("beam_size", [1, 3])
def test_it_writes_by_beam_search(tiny_task, examples, make_table_model, beam_size):
    teacher = make_table_model(tiny_task, 3)
    expert = NeuralExpert(teacher)
    written = expert.write(examples, max_steps=5, beam_size=beam_size)
    expected = decode_all(teacher, examples.source, 5, decoder=decoder_of(beam_size))
    assert torch.equal(written.source, examples.source)
    assert torch.equal(written.reference, expected)
    tokens = int((expected != teacher.special.pad).sum())
    assert expert.queries.tokens == beam_size * tokens
    assert expert.queries.forwards == 1


def test_without_an_expert_the_error_says_what_to_do(examples, trajectories):
    expert = NoExpert()
    for ask in (
        lambda: expert.logits(trajectories),
        lambda: expert.best_actions(trajectories),
        lambda: expert.write(examples, max_steps=5, beam_size=1),
    ):
        with pytest.raises(RuntimeError, match=r"run has none: give a teacher.*mle"):
            ask()
