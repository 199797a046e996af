"""Memory of a recurrent unit with attention: what each step sees of it."""

import math

import pytest
import torch

from textgen_env.models.unit_memory import UnitMemory


def test_a_step_sees_what_was_written_up_to_itself_by_hand():
    keys_values = torch.full((2, 2, 1, 4, 1), 1e9)  # what is not written is never read
    memory = UnitMemory(keys_values, torch.tensor([0, 0]))
    memory.write(torch.tensor([[[0.0, 3.0]], [[0.0, 5.0]]]))
    assert memory.attend(torch.ones(2, 1, 1)).flatten().tolist() == [3, 5]
    memory = UnitMemory(keys_values, torch.tensor([1, 0]))  # the second row has gone back
    memory.write(torch.tensor([[[math.log(2), 6.0]], [[0.0, 7.0]]]))
    attended = memory.attend(torch.ones(2, 1, 1)).flatten()
    # Weights 1 and 2 of values 3 and 6 in the first row, 7 alone in the second.
    torch.testing.assert_close(attended, torch.tensor([5.0, 7.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_block_is_its_steps(dtype):
    torch.manual_seed(0)
    shape, length = (2, 3, 1, 8, 4), torch.tensor([0, 2, 4])
    before = torch.randn(shape, dtype=dtype)
    query, written = (torch.randn(3, 4, width, dtype=dtype) for width in (4, 8))
    block, stepped = UnitMemory(before.clone(), length), before.clone()
    block.write(written)
    attended = block.attend(query)
    for step in range(4):
        memory = UnitMemory(stepped, length + step)
        memory.write(written[:, step : step + 1])
        alone = memory.attend(query[:, step : step + 1])
        torch.testing.assert_close(alone[:, 0], attended[:, step], rtol=0.02, atol=0.02)
        if dtype == torch.float64:
            assert (alone[:, 0] - attended[:, step]).abs().max() < 1e-10
    assert torch.equal(stepped, block.keys_values)
