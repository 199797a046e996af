"""Writing text by stepping the environment: the only way in which agents collect prefixes."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.rollouts.behaviors import Behavior, StepView, by_example, token_sampler, toss
from textgen_env import dynamics
from textgen_env.envs.continuous_batching import PrefillPool, next_positions
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.experts.session import ExpertSession
from textgen_env.generation.decoding import Sampling, rows_to_keep, sync_interval
from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Examples, Trajectories, trimmed


def rollout(
    env: TextGenVectorEnv,
    behavior: Behavior,
    indices: Tensor,
    student: SequenceModel,
    expert: Expert | None = None,
) -> Trajectories:
    """Write one episode in each slot and record it.

    Args:
        env: in autoreset mode DISABLED.
        behavior: who writes.
        indices: (B,) int64, the example of each slot.
        student: the policy.
        expert: goes along step by step, for a behavior that looks at it; None for one that does
            not.

    Returns:
        Trajectories with T up to the environment's limit.
    """
    examples = env.examples.select(indices).trimmed(env.special)
    with torch.inference_mode():
        env.reset(options={"indices": indices})
        columns = list(_written(env, behavior, examples, student, expert))
    actions, writer, mask = (torch.stack(steps, 1) for steps in zip(*columns, strict=True))
    return Trajectories.of(examples, actions, writer, mask)


def _written(
    env: TextGenVectorEnv,
    behavior: Behavior,
    examples: Examples,
    student: SequenceModel,
    expert: Expert | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What is written, who wrote it and whether it counts, (B,) each, step by step."""
    special, every = env.special, sync_interval(env.device)
    cache = student.start(examples.source, env.max_steps)
    session = None
    if expert is not None:
        session = ExpertSession(expert, examples.expert_source, env.max_steps)
    rows = torch.arange(len(examples), device=env.device)  # that are still being written
    reference = F.pad(examples.reference, (0, env.max_steps), value=special.pad)
    previous = torch.full_like(rows, special.start)
    for step in range(env.max_steps):
        state, written = env.state, previous[rows]
        logits, cache = student.step(written, cache)
        expert_logits = None
        if session is not None:
            expert_logits = session.step(dynamics.select_rows(state, rows), written)
        view = StepView(
            rows=rows,
            position=torch.full_like(rows, step),
            student_logits=logits,
            data_action=reference[:, step],
            expert_logits=expert_logits,
        )
        action, writer = torch.full_like(previous, special.pad), torch.zeros_like(previous)
        action[rows], writer[rows] = behavior(view)
        *_, info = env.step(action.masked_fill_(state.done, special.pad))
        previous = info["written"]
        yield previous, writer, state.alive
        kept = rows_to_keep(env.state.done[rows]) if (step + 1) % every == 0 else None
        if kept is not None:
            rows, reference, cache = rows[kept], reference[kept], cache.select_rows(kept)
            if session is not None:
                session.select_rows(kept)
        if not len(rows):
            return


@torch.no_grad()
def stream(
    env: TextGenVectorEnv, behavior: Behavior, indices: Tensor, student: SequenceModel
) -> Trajectories:
    """Write any number of examples slot by slot: one that ends makes room for the next at once.

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

    pool = PrefillPool(student.start, sources_at, env.max_steps)
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
            action, writer = behavior(StepView(slot, position, logits, data_action))
            shown, _, _, _, info = env.step(action)
            steps.append((place, position, info["written"], writer))
            begun = info["_final_obs"]
            previous = info["written"].masked_fill(begun, env.special.start)
            place = next_positions(coming, begun).where(begun, place)
            cache = pool.refill(cache, begun, coming)
            coming = coming + begun.sum()
    return _gathered(steps, examples, order.argsort(), env)


def _gathered(
    steps: Sequence[tuple[Tensor, ...]], examples: Examples, rows: Tensor, env: TextGenVectorEnv
) -> Trajectories:
    """Trajectories from all steps of all slots.

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


def student_or_data(
    indices: Tensor,
    env: TextGenVectorEnv,
    student: SequenceModel,
    *,
    beta: float,
    sampling: Sampling | None,
    generator: torch.Generator,
) -> Trajectories:
    """A rollout in which a coin for each example says who writes it from start to end.

    Args:
        indices: (B,) int64, the example of each slot.
        env: in autoreset mode DISABLED.
        student: the policy.
        beta: probability that the data writes, in [0, 1].
        sampling: how the student writes; None for greedy.
        generator: of the coins and of the student's draws; on the CPU.

    Source: Lin et al. 2020, algorithm 1, arXiv:2009.07253.
    """
    by_student = toss(beta, len(indices), generator).to(env.device)
    student_chooses = token_sampler(sampling, env, generator)
    behavior = by_example(by_student, student_chooses, env.max_steps)
    return rollout(env, behavior, indices, student)
