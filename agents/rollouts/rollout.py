"""Rollouts: prefixes written by stepping the environment, as every agent collects them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.rollouts.behaviors import (
    Behavior,
    StepView,
    bernoulli_mask,
    by_example,
    token_sampler,
)
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.lengths import cut_off
from textgen_env import dynamics
from textgen_env.dynamics import State
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.experts.session import ExpertSession
from textgen_env.generation.decoding import rows_to_keep, sync_interval
from textgen_env.generation.sampling import Sampling
from textgen_env.types import Examples, Trajectories, Writer


def data_rollout(context: Context) -> LabelledBatch:
    """Return the references of the examples as prefixes, without stepping the environment.

    Of examples without references no action counts: agents that use this alone need them.
    """
    env = context.env
    examples = env.examples.select(context.indices)
    return LabelledBatch(Trajectories.from_examples(examples, env.special))


def data_first_rollout(context: Context, sampling: Sampling | None) -> LabelledBatch:
    """Return the references as prefixes; the student writes those of examples that have none.

    Args:
        context: of the collection.
        sampling: how the student writes; None for greedy.
    """
    by_data = _has_reference(context)
    if by_data.all():
        return data_rollout(context)
    batches = [data_rollout(context), student_rollout(context, sampling)]
    rows = torch.arange(len(by_data), device=by_data.device)
    both = LabelledBatch.cat(batches, context.env.special)
    return both.select(rows.where(by_data, rows + len(rows)))


def mixed_rollout(context: Context, *, beta: float, sampling: Sampling | None) -> LabelledBatch:
    """Write each example from start to end by the data or by the student.

    Examples without references are the student's, whatever is drawn for them.

    Args:
        context: of the collection.
        beta: probability that the data writes an example, in [0, 1].
        sampling: how the student writes; None for greedy.

    Source: Lin et al. 2020, algorithm 1, arXiv:2009.07253.
    """
    env = context.env
    drawn = bernoulli_mask(beta, len(context.indices), context.generator).to(env.device)
    by_student = ~(drawn & _has_reference(context))
    behavior = by_example(by_student, token_sampler(sampling, context), env.max_steps)
    return rollout(context, behavior, by_data=~by_student)


def student_rollout(context: Context, sampling: Sampling | None) -> LabelledBatch:
    """Write every example by the student alone.

    Args:
        context: of the collection.
        sampling: how the student writes; None for greedy.
    """
    return mixed_rollout(context, beta=0.0, sampling=sampling)


def rollout(
    context: Context,
    behavior: Behavior,
    *,
    record_expert_logits: bool = False,
    by_data: Tensor | None = None,
) -> LabelledBatch:
    """Write one episode in each slot.

    All but those that the data alone writes are truncated where `context.max_written` says.

    Args:
        context: of the collection.
        behavior: the policy that writes.
        record_expert_logits: query the environment's expert at every step, show its logits to
            `behavior`, and keep them as labels, in the expert's precision.
        by_data: (B,) bool, the rows that `behavior` leaves to the data from start to end: where it
            saves time, no student is asked about them. None if there are none.

    Returns:
        Trajectories with T up to the environment's limit, with `behavior_log_prob` if an action was
        drawn, and the label "logits", (B, T, V), if it was recorded.
    """
    env = context.env
    examples = env.examples.select(context.indices).trimmed(env.special)
    recorder = _LogitsRecorder(env.expert, examples, env) if record_expert_logits else None
    with torch.inference_mode():
        env.reset(options={"indices": context.indices})
        columns = list(_steps(context, behavior, examples, recorder, by_data))
    *written, log_probs = zip(*columns, strict=True)
    actions, writer, mask = (torch.stack(steps, 1) for steps in written)
    trajectories = replace(
        Trajectories.of(examples, actions, writer, mask), behavior_log_prob=_over_steps(log_probs)
    )
    return LabelledBatch(trajectories, {} if recorder is None else recorder.labels())


def _over_steps(log_probs: Sequence[Tensor | None]) -> Tensor | None:
    """Return the (B, T) log-probabilities of all steps; None if nothing was drawn at any."""
    drawn = next((each for each in log_probs if each is not None), None)
    if drawn is None:
        return None
    certain = torch.zeros_like(drawn)
    return torch.stack([certain if each is None else each for each in log_probs], 1)


def _has_reference(context: Context) -> Tensor:
    """Return a (B,) bool mask, True for the slots whose example has a reference."""
    env = context.env
    return env.examples.select(context.indices).has_reference(env.special)


def _steps(
    context: Context,
    behavior: Behavior,
    examples: Examples,
    recorder: "_LogitsRecorder | None",
    by_data: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield what is written, by whom, whether it counts and how probable it was, step by step.

    The tensors are (B,) each; the last is a log-probability, None where nothing was drawn.
    """
    env, every = context.env, sync_interval(context.env.device)
    state, data_alone = env.state, torch.ones_like(env.state.done)
    rows = torch.arange(len(examples), device=env.device)  # that the student is asked about
    kept = None if by_data is None else rows_to_keep(by_data)
    rows = rows if kept is None else kept
    cache = context.student.start(examples.source[rows], env.max_steps) if len(rows) else None
    reference = F.pad(examples.reference, (0, env.max_steps), value=env.special.pad)
    previous = torch.full_like(examples.source[:, 0], env.special.start)
    for step in range(env.max_steps):
        action, writer = reference[:, step].clone(), torch.full_like(previous, Writer.DATA)
        drawn: list[Tensor | None] = []
        if cache is not None:
            written = previous[rows]
            logits, cache = context.student.step(written, cache)
            view = StepView(
                rows=rows,
                position=torch.full_like(rows, step),
                student_logits=logits,
                data_action=action[rows],
                expert_logits=None if recorder is None else recorder.step(state, rows, written),
            )
            action[rows], writer[rows], *drawn = behavior(view)
        *_, info = env.step(action.masked_fill_(state.done, env.special.pad))
        previous = info["written"].masked_fill(state.done, env.special.pad)
        is_drawn = state.alive & (previous == action)  # noise may have written another token
        yield previous, writer, state.alive, _spread(drawn[0] if drawn else None, rows, is_drawn)
        data_alone = data_alone & (writer == Writer.DATA)
        state = cut_off(env.state, context.max_written, data_alone)
        if (step + 1) % every:
            continue
        if state.done.all():
            return
        kept = None if cache is None else rows_to_keep(state.done[rows])
        if kept is not None and cache is not None:
            rows, cache = rows[kept], cache.select_rows(kept) if len(kept) else None
            if recorder is not None:
                recorder.session.select_rows(kept)


def _spread(log_prob: Tensor | None, rows: Tensor, is_drawn: Tensor) -> Tensor | None:
    """Return (B,) log-probabilities from those of the `rows`, (K,), 0 where `is_drawn` is False."""
    if log_prob is None:
        return None
    certain = torch.zeros_like(is_drawn, dtype=torch.float32)
    return certain.index_copy(0, rows, log_prob).where(is_drawn, certain)


class _LogitsRecorder:
    """An expert that is queried at every step, and all that it has said of B episodes."""

    def __init__(self, expert: Expert, examples: Examples, env: TextGenVectorEnv) -> None:
        self.session = ExpertSession(expert, examples.expert_view, env.max_steps)
        self.num_episodes = len(examples)
        self.steps: list[Tensor] = []  # (B, V) each

    def step(self, state: State, rows: Tensor, previous: Tensor) -> Tensor:
        """Return the (K, V) logits of the episodes at `rows`, (K,), after token `previous`."""
        logits = self.session.step(dynamics.select_rows(state, rows), previous)
        every = logits.new_zeros(self.num_episodes, logits.shape[1])
        self.steps.append(every.index_copy(0, rows, logits))
        return logits

    def labels(self) -> dict[str, Tensor]:
        """Return the label "logits", (B, T, V), 0 where an episode was over."""
        return {"logits": torch.stack(self.steps, 1)}
