"""Processes of one run: started by `torchrun`, each handles its share of every batch."""

import atexit
from functools import cache
from typing import cast

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor

from textgen_agents.agent import Agent


@cache
def this_process() -> PartialState:
    """Return the state of this process; its process group is destroyed at exit."""
    state = PartialState(cpu=not torch.cuda.is_available())
    atexit.register(state.destroy_process_group)
    return state


def this_device() -> torch.device:
    """Return the device of this process: a CUDA device of its own where there is one."""
    device = this_process().device
    assert device is not None, "PartialState chooses one"
    return device


def disable_cudnn_attention(device: torch.device) -> None:
    """Disable cuDNN's attention kernels if `device` is a CUDA device.

    They plan anew for every shape, and batches of text have many. PyTorch's other kernels take any
    shape without a plan.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def sum_of_processes(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the sum of the processes' tensors, the same in each of them."""
    return cast("Tensor", accelerator.reduce(tensor, "sum"))


def num_slots(agent: Agent, batch_size: int) -> int:
    """Return the number of episodes in a rollout of this process: its share of all its batches.

    Args:
        agent: algorithm, which sets the number of batches for each rollout.
        batch_size: number of episodes in a batch, of all processes together.

    Raises:
        ValueError: `batch_size` is not divisible by the number of processes.
    """
    processes = this_process().num_processes
    if batch_size % processes:
        raise ValueError(
            f"batch_size must be divisible by the number of processes ({processes}), "
            f"got {batch_size}"
        )
    return agent.batches_per_rollout * batch_size // processes
