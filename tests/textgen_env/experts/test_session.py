import pytest
import torch

from textgen_env import dynamics
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import NeuralExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.experts.session import ExpertSession
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories, Writer

MAX_STEPS = 4


@pytest.fixture
def examples(tiny_task):
    return encode(tiny_task.validation[:4], tiny_task)


@pytest.fixture(params=["neural", "scripted", "oracle"])
def expert(request, examples, tiny_task, tiny_teacher):
    vocab_size = tiny_task.tokenizer.vocab_size
    if request.param == "scripted":
        return ScriptedExpert(lambda source, prefix, length: source[:, 0] + length, vocab_size)
    if request.param == "oracle":
        return DynamicOracle(examples, vocab_size)
    return NeuralExpert(tiny_teacher)


def start_tokens(state, expert):
    return torch.full_like(state.length, expert.special.start)


def draw_actions(expert):
    """Return (4, MAX_STEPS) words, none of which ends a text."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, expert.vocab_size, (4, MAX_STEPS), generator=generator)


def parallel_logits(expert, examples, actions):
    """Return the logits of all states of finished texts, from one parallel pass."""
    mask = torch.ones_like(actions, dtype=torch.bool)
    writer = torch.full_like(actions, Writer.STUDENT)
    return expert.logits(Trajectories.of(examples, actions, writer, mask))


def test_stepping_with_dropped_rows_equals_the_parallel_pass(expert, examples):
    actions = draw_actions(expert)
    expected = parallel_logits(expert, examples, actions)
    rows = torch.arange(len(examples))
    session = ExpertSession(expert, examples.source, MAX_STEPS)
    state = dynamics.initial(examples.source, MAX_STEPS, expert.special)
    previous = start_tokens(state, expert)
    for step in range(MAX_STEPS):
        torch.testing.assert_close(session.step(state, previous), expected[rows, step])
        previous = actions[rows, step]
        state = dynamics.transition(state, previous, expert.special)
        if step == 1:
            kept = torch.tensor([3, 1])
            rows, state, previous = rows[kept], dynamics.select_rows(state, kept), previous[kept]
            session.select_rows(kept)


def test_stepping_with_refilled_slots_equals_the_parallel_pass(expert, examples):
    """Write examples 0 and 1 in two slots; after two steps slot 1 begins example 3."""
    actions = draw_actions(expert)
    expected = parallel_logits(expert, examples, actions)
    first, later = examples.select(torch.tensor([0, 1])), examples.select(torch.tensor([2, 3]))
    session = ExpertSession(expert, first.source, MAX_STEPS)
    pool = expert.start(later.source, MAX_STEPS)
    state = dynamics.initial(first.source, MAX_STEPS, expert.special)
    begun, previous = torch.tensor([False, True]), start_tokens(state, expert)
    example = torch.tensor([0, 1])
    for step in range(MAX_STEPS):
        if step == 2:
            example = torch.tensor([0, 3])
            fresh = dynamics.initial(examples.source[example], MAX_STEPS, expert.special)
            state = dynamics.replace_rows(state, begun, fresh)
            session.reset_rows(begun, pool, torch.tensor([0, 1]))
            previous = previous.masked_fill(begun, expert.special.start)
        logits = session.step(state, previous)
        torch.testing.assert_close(logits, expected[example, state.length])
        previous = actions[example, state.length]
        state = dynamics.transition(state, previous, expert.special)
