"""One run in several processes, started by `torchrun`: each does its share of every batch."""

import atexit
from functools import cache

import torch
from accelerate import PartialState

from textgen_agents.agent import Agent


@cache
def this_process() -> PartialState:
    """Which process of the run this is; takes leave of the others when it ends."""
    state = PartialState(cpu=not torch.cuda.is_available())
    atexit.register(state.destroy_process_group)
    return state


def this_device() -> torch.device:
    """Where this process computes: on a CUDA device of its own where there is one."""
    device = this_process().device
    assert device is not None, "PartialState chooses one"
    return device


def disable_cudnn_attention(device: torch.device) -> None:
    """Have attention on a CUDA `device` made by kernels that take any shape at once.

    cuDNN's make a plan for each shape, and batches of text have many. A pass of a Transformer of 6
    layers over 64 texts in bfloat16, on an H200: 150 to 1,500 ms at a new shape, where PyTorch's
    other kernels take 7 to 22.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def num_slots(agent: Agent, batch_size: int) -> int:
    """Episodes that this process collects together: its share of each batch of the agent's pool.

    Raises:
        ValueError: `batch_size` cannot be shared out evenly.
    """
    processes = this_process().num_processes
    if batch_size % processes:
        raise ValueError(
            f"batch_size must be divisible by the number of processes ({processes}), "
            f"got {batch_size}"
        )
    return agent.batches_per_rollout * batch_size // processes
