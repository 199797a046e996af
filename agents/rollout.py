"""Writing text by stepping the environment: the only way in which agents collect prefixes."""

import torch
from torch import Tensor

from agents.behaviors import Behavior, PerExampleMixture, StepView, toss
from textgen_env.decoding import Sampling, look_every, rows_to_keep
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import Trajectories
from textgen_env.vector_env import TextGenVectorEnv


@torch.no_grad()
def rollout(
    env: TextGenVectorEnv, behavior: Behavior, indices: Tensor, student: SequenceModel
) -> Trajectories:
    """Write one episode in each slot and record it.

    Args:
        env: in autoreset mode DISABLED.
        behavior: who writes.
        indices: (B,) int64, the example of each slot.
        student: the policy.

    Returns:
        Trajectories with T up to the environment's limit.
    """
    env.reset(options={"indices": indices})
    special, every = env.special, look_every(env.device)
    examples = env.examples.select(indices).trimmed(special)
    cache = student.start(examples.source, env.max_steps)
    rows = torch.arange(len(indices), device=env.device)  # that are still being written
    previous = torch.full_like(rows, special.start)
    done = torch.zeros_like(rows, dtype=torch.bool)
    actions, writers, counted = [], [], []
    for step in range(env.max_steps):
        logits, cache = student.step(previous[rows], cache)
        data_action = _column(examples.reference, step, special.pad)
        action, writer = torch.full_like(previous, special.pad), torch.zeros_like(previous)
        action[rows], writer[rows] = behavior(StepView(rows, logits, data_action[rows]))
        writers.append(writer)
        counted.append(~done)
        _, _, terminated, truncated, info = env.step(action)
        previous, done = info["written"], terminated | truncated
        actions.append(previous)
        kept = rows_to_keep(done[rows]) if (step + 1) % every == 0 else None
        if kept is not None:
            rows, cache = rows[kept], cache.select_rows(kept)
        if not len(rows):
            break
    return Trajectories(
        source=examples.source,
        actions=torch.stack(actions, 1),
        writer=torch.stack(writers, 1),
        mask=torch.stack(counted, 1),
        reference=examples.reference,
    )


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
    seed = int(torch.randint(2**62, (), generator=generator))
    draws = torch.Generator(env.device).manual_seed(seed)
    behavior = PerExampleMixture(by_student, env.special, sampling, draws)
    return rollout(env, behavior, indices, student)


def _column(tokens: Tensor, step: int, pad: int) -> Tensor:
    """(B,) the tokens at `step`, PAD where there are no more."""
    if step < tokens.shape[1]:
        return tokens[:, step]
    return tokens.new_full((len(tokens),), pad)
