import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textgen_env import dynamics
from textgen_env.types import SpecialTokens

SPECIAL = SpecialTokens()
MAX_STEPS = 4
VOCAB_SIZE = 6
SOURCE = torch.tensor([[3, 4, 2, 0], [5, 2, 0, 0]])


def written(*actions, source=SOURCE[:1]):
    """Return the state after each row took the same `actions`."""
    state = dynamics.initial(source, MAX_STEPS, SPECIAL)
    for action in actions:
        state = dynamics.transition(state, torch.full((len(source),), action), SPECIAL)
    return state


def by_plain_python(actions):
    """Compute prefix, length and flags after `actions` in plain Python."""
    prefix, terminated, truncated = [], False, False
    for action in actions:
        if terminated or truncated:
            continue
        prefix.append(action)
        terminated = action == SPECIAL.end
        truncated = not terminated and len(prefix) == MAX_STEPS
    padded = prefix + [SPECIAL.pad] * (MAX_STEPS - len(prefix))
    return padded, len(prefix), terminated, truncated


def test_nothing_is_written_at_first():
    state = written(source=SOURCE)
    assert state.prefix.tolist() == [[0] * MAX_STEPS] * 2
    assert state.length.tolist() == [0, 0]
    assert state.source_length.tolist() == [3, 2]
    assert not state.done.any()


def test_the_end_token_terminates():
    state = written(3, 2)
    assert state.prefix.tolist() == [[3, 2, 0, 0]]
    assert (state.terminated.item(), state.truncated.item()) == (True, False)


def test_the_limit_truncates():
    assert not written(3, 3, 3).done.item()
    state = written(3, 3, 3, 3)
    assert (state.terminated.item(), state.truncated.item()) == (False, True)


def test_the_end_token_at_the_limit_terminates_and_does_not_truncate():
    state = written(3, 3, 3, 2)
    assert (state.terminated.item(), state.truncated.item()) == (True, False)


@pytest.mark.parametrize("actions", [(2,), (3, 3, 3, 3)])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_nothing_changes_after_the_end(actions, after):
    before, state = written(*actions), written(*actions, after)
    assert torch.equal(before.prefix, state.prefix)
    assert torch.equal(before.length, state.length)
    assert torch.equal(before.terminated, state.terminated)
    assert torch.equal(before.truncated, state.truncated)


def test_padding_and_the_start_token_are_written_like_any_other():
    state = written(0, 1)
    assert state.length.item() == 2
    assert state.prefix.tolist() == [[0, 1, 0, 0]]


def test_a_transition_does_not_change_its_state():
    state = written(3)
    dynamics.transition(state, torch.tensor([2]), SPECIAL)
    assert state.prefix.tolist() == [[3, 0, 0, 0]]
    assert not state.done.item()


def test_replaced_rows_are_fresh_and_the_others_stay():
    old = written(2, source=SOURCE)
    fresh = dynamics.initial(SOURCE.flip(0), MAX_STEPS, SPECIAL)
    state = dynamics.replace_rows(old, torch.tensor([True, False]), fresh)
    assert state.source.tolist() == [SOURCE[1].tolist(), SOURCE[1].tolist()]
    assert state.source_length.tolist() == [2, 2]
    assert state.length.tolist() == [0, 1]
    assert state.prefix.tolist() == [[0, 0, 0, 0], [2, 0, 0, 0]]
    assert state.terminated.tolist() == [False, True]


def test_an_observation_is_int64_throughout():
    shown = dynamics.observation(written(3, source=SOURCE))
    assert {name: tuple(tensor.shape) for name, tensor in shown.items()} == {
        "source": (2, 4),
        "source_length": (2,),
        "prefix": (2, MAX_STEPS),
        "length": (2,),
    }
    assert {tensor.dtype for tensor in shown.values()} == {torch.int64}


@given(
    st.integers(1, 5).flatmap(
        lambda rows: st.lists(
            st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=rows, max_size=rows),
            max_size=MAX_STEPS + 3,
        ).map(lambda steps: (rows, steps))
    )
)
def test_every_row_equals_plain_python(case):
    rows, steps = case
    state = dynamics.initial(SOURCE[:1].expand(rows, -1), MAX_STEPS, SPECIAL)
    for actions in steps:
        state = dynamics.transition(state, torch.tensor(actions), SPECIAL)
    assert not (state.terminated & state.truncated).any()
    for row in range(rows):
        prefix, length, terminated, truncated = by_plain_python([actions[row] for actions in steps])
        assert state.prefix[row].tolist() == prefix
        assert state.length[row].item() == length
        assert state.terminated[row].item() == terminated
        assert state.truncated[row].item() == truncated
