"""Streaming rollouts: examples written slot by slot, without waiting for a batch's longest text."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.rollouts.behaviors import Behavior, StepView
from textgen_env.envs.continuous_batching import PrefillPool, next_positions
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.generation.decoding import sync_interval
from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories, trimmed


@torch.no_grad()
def stream(
    env: TextGenVectorEnv, behavior: Behavior, indices: Tensor, student: SequenceModel
) -> Trajectories:
    """Write any number of examples slot by slot, where the next one takes a slot that has ended.

    Long sources begin first, so that no long text is left for the end. Slots that have no example
    left begin with the first ones again, until the last example is done; what they write then is
    not recorded.

    Args:
        env: in autoreset mode SAME_STEP.
        behavior: who writes in each slot.
        indices: (K,) int64, the examples.
        student: the policy.

    Returns:
        K trajectories in the order of `indices`, with T up to the environment's limit.
    """
    slots, count = env.num_envs, len(indices)
    length = (env.examples.source[indices] != env.special.pad).sum(1)
    order = length.argsort(descending=True, stable=True)
    shown, _ = env.reset(options={"order": indices[order]})
    examples = env.examples.select(indices[order]).trimmed(env.special)
    references = F.pad(examples.reference, (0, 1), value=env.special.pad)

    def sources_at(place: Tensor) -> Tensor:
        if not host_sync_is_free(env.device):
            return examples.source[place % count]
        left = place.clamp(max=count - 1).unique_consecutive()  # what comes after is not recorded
        return trimmed(examples.source[left], env.special)

    bank = PrefillPool(student.start, sources_at, env.max_steps)
    slot = torch.arange(slots, device=env.device)
    place, coming = slot, slot[-1] + 1  # in that order: of each slot's example, of the next one
    cache = student.start(examples.source[place % count], env.max_steps)
    previous = torch.full_like(place, env.special.start)
    steps: list[tuple[Tensor, ...]] = []
    while int(place.min()) < count:
        for _ in range(sync_interval(env.device)):
            logits, cache = student.step(previous, cache)
            position = shown["length"]
            data_action = references[place % count, position.clamp(max=references.shape[1] - 1)]
            action, writer, *_ = behavior(StepView(slot, position, logits, data_action))
            shown, _, _, _, info = env.step(action)
            steps.append((place, position, info["written"], writer))
            begun = info["_final_obs"]
            previous = info["written"].masked_fill(begun, env.special.start)
            place = next_positions(coming, begun).where(begun, place)
            cache = bank.refill(cache, begun, coming)
            coming = coming + begun.sum()
    return _gathered(steps, examples, order.argsort(), env)


def _gathered(
    steps: Sequence[tuple[Tensor, ...]], examples: Examples, rows: Tensor, env: TextGenVectorEnv
) -> Trajectories:
    """Return trajectories from all steps of all slots.

    Args:
        steps: (place, position, action, writer) of a step, (B,) int64 each.
        examples: by place.
        rows: (K,) int64, the place of each trajectory.
        env: gives the length limit.
    """
    place, position, action, writer = map(torch.cat, zip(*steps, strict=True))
    count = len(examples)
    cell = place.clamp(max=count), position  # the row after the last takes what is not wanted
    pad = action.new_full((count + 1, env.max_steps), env.special.pad)
    mask = torch.zeros_like(pad, dtype=torch.bool)
    mask.index_put_(cell, torch.ones_like(place, dtype=torch.bool))
    written = pad.index_put(cell, action)[rows], pad.index_put(cell, writer)[rows], mask[rows]
    return Trajectories.of(examples.select(rows), *written).trimmed(env.special)
