"""Benchmark of the environment: stepping, rollouts beside the bare engine, streaming with refill.

All sides of a comparison do the same work in one process, in turn, over several rounds. A ratio is
the median of the rounds' ratios, so a machine that is busy for a while slows all sides alike.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from textgen_agents.rollouts.behaviors import by_example, token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env.bounds import check_at_least
from textgen_env.envs.rewards import no_reward, sentence_bleu
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.generation.decoding import greedy, next_action
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import Task, encode
from textgen_env.types import Examples
from textgen_experiments.benchmarks.streaming import stream
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.evaluation.timing import (
    Workload,
    interleaved_rates,
    ratio,
    step_batch,
)
from textgen_experiments.models.generate import model_folder, task_of
from textgen_experiments.runs.experiment import VERSES_TEACHER
from textgen_experiments.runs.memory import tell_peak_memory

DUMMY_VEC_ENV = "steps earning sentence BLEU: SB3 DummyVecEnv"
SYNC_VECTOR_ENV = "steps earning sentence BLEU: gymnasium SyncVectorEnv"
TEXT_VECTOR_ENV = "steps earning sentence BLEU: TextGenVectorEnv"
FULL_BATCHES = "tokens: batches run to their longest"
BARE_ENGINE = "tokens: decoding.greedy, which drops rows"
ROLLOUT = "tokens: rollout"
STREAM = "tokens: streaming with refill"
FLOOR = "tokens: floor, by length, all slots busy"


@dataclass(frozen=True)
class SpeedComparison:
    """Comparison of two sides' speeds.

    Attributes:
        name: its name in the table.
        side: a side of `stepping_sides` or `writing_sides`.
        base: the side of the same group that it is compared to.
        required: least ratio that the environment has to reach; None for a ratio that is only
            reported.
    """

    name: str
    side: str
    base: str
    required: float | None = None


SPEED_COMPARISONS = (
    SpeedComparison("TextGenVectorEnv over DummyVecEnv", TEXT_VECTOR_ENV, DUMMY_VEC_ENV, 10),
    SpeedComparison("TextGenVectorEnv over SyncVectorEnv", TEXT_VECTOR_ENV, SYNC_VECTOR_ENV, 10),
    SpeedComparison("rollout over the bare engine, decoding.greedy", ROLLOUT, BARE_ENGINE, 0.95),
    SpeedComparison("streaming over batches run to their longest", STREAM, FULL_BATCHES, 1.3),
    SpeedComparison("decoding.greedy over batches run to their longest", BARE_ENGINE, FULL_BATCHES),
    SpeedComparison("fraction of the floor: streaming", STREAM, FLOOR),
    SpeedComparison("fraction of the floor: rollout", ROLLOUT, FLOOR),
)


@dataclass(frozen=True)
class BenchmarkEnvOptions:
    """Time the environment beside other environments and beside decoding without one.

    Attributes:
        model: folder of a finished run or of a model; by default the shipped teacher, which ends
            its texts as a trained model does.
        slots: texts written side by side.
        sentences: the first sentences of the training split; a multiple of `slots`.
        stepping_slots: slots of the comparison without a model.
        stepping_steps: steps per round of the comparison without a model.
        rounds: measured rounds, after one that is not.
    """

    model: Annotated[Path, tyro.conf.Positional] = VERSES_TEACHER
    slots: int = 64
    sentences: int = 256
    stepping_slots: int = 256
    stepping_steps: int = 20
    rounds: int = 5

    def __post_init__(self) -> None:
        check_at_least(self, slots=1, sentences=1, stepping_slots=1, stepping_steps=1, rounds=1)
        if self.sentences % self.slots:
            raise ValueError(
                f"sentences must be a multiple of slots ({self.slots}), got {self.sentences}"
            )


def benchmark_env(options: BenchmarkEnvOptions) -> None:
    """Print a table of each side's rate per second and of ratios, and the peak memory."""
    folder = model_folder(options.model)
    task = task_of(folder, load_tokenizer(folder))
    examples = encode(task.train[: options.sentences], task)
    model = with_prepacked_weights(load_model(folder, torch.float32))
    stepping = stepping_sides(task, examples, options.stepping_slots, options.stepping_steps)
    sections = []
    for sides in (stepping, writing_sides(task, model, examples, options.slots)):
        rates = interleaved_rates(sides, options.rounds)
        medians = [(name, f"{statistics.median(own):,.0f}") for name, own in rates.items()]
        sections += [medians, list(comparison_rows(rates))]
    print_table(
        f"{options.sentences} texts in {options.slots} slots, float32",
        ("what", "a second", "ratio", "required"),
        *sections,
    )
    tell_peak_memory()


def comparison_rows(rates: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row of the table for each comparison whose sides are among `rates`.

    Args:
        rates: name of a side -> its rate per second, by round.
    """
    for each in SPEED_COMPARISONS:
        if each.side in rates:
            reached = ratio(rates[each.side], rates[each.base])
            required = "" if each.required is None else f"{each.required:g}"
            yield each.name, "", f"{reached:.2f}", required


def stepping_sides(task: Task, examples: Examples, slots: int, steps: int) -> dict[str, Workload]:
    """Return the sides that step all slots with random tokens, without a model.

    All reward sentence BLEU, which is the default.
    """
    # Imported here because it is slow and no other command needs it.
    from stable_baselines3.common.vec_env import DummyVecEnv

    def single() -> gymnasium.Env[Any, Any]:
        return TextGenEnv(task, examples=examples, reward=sentence_bleu)

    singles = [single] * slots
    dummy = DummyVecEnv(singles)
    sync = SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    vector = TextGenVectorEnv(task, slots, examples=examples, reward=sentence_bleu)
    for env in (dummy, sync, vector):
        env.reset()
    draws = np.random.default_rng(0)
    actions = draws.integers(2, task.tokenizer.vocab_size, (steps, slots))

    def stepping(step: Callable[[np.ndarray], object]) -> int:
        for action in actions:
            step(action)
        return steps * slots

    return {
        DUMMY_VEC_ENV: partial(stepping, dummy.step),
        SYNC_VECTOR_ENV: partial(stepping, sync.step),
        TEXT_VECTOR_ENV: partial(stepping, vector.step),
    }


def writing_sides(
    task: Task, model: SequenceModel, examples: Examples, slots: int
) -> dict[str, Workload]:
    """Return the sides that write all examples greedily; each returns its number of tokens."""
    env = partial(TextGenVectorEnv, task, slots, examples=examples, reward=no_reward)
    batched, refilled = env(autoreset_mode=AutoresetMode.DISABLED), env()
    student = torch.ones(slots, dtype=torch.bool)
    batches = torch.arange(len(examples)).split(slots)
    contexts = [Context(rows, batched, model) for rows in batches]
    greedily = token_sampler(None, contexts[0])
    behavior = by_example(student, greedily, batched.max_steps)
    sources = [examples.select(batch).trimmed(model.special).source for batch in batches]
    length, pad = task.max_target_length, model.special.pad

    def by_engine() -> int:
        return sum(int((greedy(model, source, length) != pad).sum()) for source in sources)

    def by_rollout() -> int:
        batches = (rollout(context, behavior) for context in contexts)
        return sum(int(batch.trajectories.mask.sum()) for batch in batches)

    def by_stream() -> int:
        return int(stream(refilled, behavior, torch.cat(batches), model).mask.sum())

    tokens = by_engine()
    mean_length = math.ceil(tokens / len(examples))
    by_length = (examples.source != pad).sum(1).argsort(descending=True).split(slots)
    sorted_sources = [examples.select(rows).trimmed(model.special).source for rows in by_length]

    def by_floor() -> int:
        for source in sorted_sources:
            step_batch(model, source, mean_length, length)
        return tokens

    return {
        FULL_BATCHES: lambda: sum(_full_batch(model, source, length) for source in sources),
        BARE_ENGINE: by_engine,
        ROLLOUT: by_rollout,
        STREAM: by_stream,
        FLOOR: by_floor,
    }


@torch.no_grad()
def _full_batch(model: SequenceModel, source: Tensor, max_steps: int) -> int:
    """Write a batch until its longest text ends, all rows at every step; return its tokens."""
    special, tokens = model.special, 0
    previous = torch.full((len(source),), special.start)
    done, cache = torch.zeros(len(source), dtype=torch.bool), model.start(source, max_steps)
    for _ in range(max_steps):
        logits, cache = model.step(previous, cache)
        previous = next_action(logits, special=special)
        tokens += int((~done).sum())
        done = done | (previous == special.end)
        if done.all():
            break
    return tokens
