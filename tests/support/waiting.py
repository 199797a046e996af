"""Dispatch modes that find what would make a host wait for its accelerator, on a CPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from textgen_env.envs import continuous_batching, rewards, validation
from textgen_env.generation import decoding, sampling
from textgen_env.models import (
    cache_ops,
    hybrid,
    kv_cache,
    recurrent_cache,
    source_memory,
    token_positions,
)

WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def set_sync_is_free(monkeypatch, free):
    """Let reading values cost nothing, as on a CPU, or wait for the device."""
    models = kv_cache, source_memory, recurrent_cache, hybrid, cache_ops, token_positions
    modules = *models, validation, continuous_batching, rewards, decoding, sampling
    for module in modules:
        monkeypatch.setattr(module, "host_sync_is_free", lambda device: free)


class NoWaiting(TorchDispatchMode):
    """Mode that fails on operators that read values or whose result's shape depends on values.

    `tolist` and `numpy` are no operators; on the meta device, which other tests use, they fail.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in ("index", "index_put", "index_put_"):
            assert not WAITING & set(func.tags), f"{name} waits for the device"
        else:
            kinds = {index.dtype for index in args[1] if index is not None}
            assert not kinds & {torch.bool, torch.uint8}, f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


class OnMetaDevice(TorchDispatchMode):
    """Mode that fails on an operator whose result is elsewhere; reading a value fails by itself."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            assert not isinstance(leaf, torch.Tensor) or leaf.is_meta, f"{func}: {leaf.device}"
        return result
