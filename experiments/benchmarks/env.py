"""The environment's speed: stepping, a rollout beside the bare engine, and streaming with refill.

All sides of a comparison do the same work in one process, in turn, several times over, and a ratio
is the median of the rounds' ratios: a machine that is busy for a while slows all of them.
"""

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
from rich.console import Console
from rich.table import Table
from torch import Tensor

from textgen_agents.rollouts.behaviors import by_example, token_sampler
from textgen_agents.rollouts.rollout import rollout, stream
from textgen_env.envs.rewards import no_reward, sentence_bleu
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.generation.decoding import greedy, next_action
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import Task, encode
from textgen_env.types import Examples
from textgen_experiments.evaluation.timing import Work, interleaved_rates, ratio
from textgen_experiments.models.generate import model_folder, task_of
from textgen_experiments.runs.experiment import VERSES_TEACHER

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
    """Two ways, of which one is to be so many times as fast as the other.

    Attributes:
        what: its name in the table.
        way: of `steppers` or `writers`.
        base: another one of the same.
        asked: the least ratio that the environment is to reach; None where none is asked.
    """

    what: str
    way: str
    base: str
    asked: float | None = None


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
        model: folder of a finished run or of a model; the shipped teacher, if none is named,
            because it ends its texts as a trained model does.
        slots: texts written side by side.
        sentences: to be written, the first ones of the training split; a multiple of `slots`.
        stepping_slots: slots of the comparison without a model.
        stepping_steps: its steps a round.
        rounds: measured rounds, after one that is not.
    """

    model: Annotated[Path, tyro.conf.Positional] = VERSES_TEACHER
    slots: int = 64
    sentences: int = 256
    stepping_slots: int = 256
    stepping_steps: int = 20
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.slots < 1 or self.sentences < 1 or self.sentences % self.slots:
            raise ValueError(
                f"sentences must be a multiple of slots ({self.slots}), got {self.sentences}"
            )


def benchmark_env(options: BenchmarkEnvOptions) -> None:
    """Print a table: what each side does a second, and below that `COMPARISONS` of them."""
    folder = model_folder(options.model)
    task = task_of(folder, load_tokenizer(folder))
    examples = encode(task.train[: options.sentences], task)
    table = Table(title=f"{options.sentences} texts in {options.slots} slots, float32")
    for name in ("what", "a second", "ratio", "asked"):
        table.add_column(name, justify="left" if name == "what" else "right")
    model = with_prepacked_weights(load_model(folder, torch.float32))
    stepping = stepping_sides(task, examples, options.stepping_slots, options.stepping_steps)
    for group in (stepping, writing_sides(task, model, examples, options.slots)):
        rates = interleaved_rates(group, options.rounds)
        for name, own in rates.items():
            table.add_row(name, f"{statistics.median(own):,.0f}")
        table.add_section()
        for row in comparison_rows(rates):
            table.add_row(*row)
        table.add_section()
    Console().print(table)


def comparison_rows(rates: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, str, str, str]]:
    """A row of the table for each comparison of ways that are among `rates`, a second by round."""
    for each in SPEED_COMPARISONS:
        if each.way in rates:
            reached = ratio(rates[each.way], rates[each.base])
            yield each.what, "", f"{reached:.2f}", "" if each.asked is None else f"{each.asked:g}"


def stepping_sides(task: Task, examples: Examples, slots: int, steps: int) -> dict[str, Work]:
    """Steps of all slots without a model, by random tokens: others, then this environment.

    All earn sentence BLEU, as they do by default.
    """
    # Takes seconds to import, for which no other command shall wait.
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
) -> dict[str, Work]:
    """Ways to write all examples greedily; each gives the number of useful tokens."""
    env = partial(TextGenVectorEnv, task, slots, examples=examples, reward=no_reward)
    batched, refilled = env(autoreset_mode=AutoresetMode.DISABLED), env()
    student = torch.ones(slots, dtype=torch.bool)
    greedily = token_sampler(None, batched, torch.Generator())
    behavior = by_example(student, greedily, batched.max_steps)
    batches = torch.arange(len(examples)).split(slots)
    sources = [examples.select(batch).trimmed(model.special).source for batch in batches]
    length, pad = task.max_target_length, model.special.pad

    def by_engine() -> int:
        return sum(int((greedy(model, source, length) != pad).sum()) for source in sources)

    def by_rollout() -> int:
        return sum(int(rollout(batched, behavior, rows, model).mask.sum()) for rows in batches)

    def by_stream() -> int:
        return int(stream(refilled, behavior, torch.cat(batches), model).mask.sum())

    tokens = by_engine()
    mean = -(-tokens // len(examples))
    by_length = (examples.source != pad).sum(1).argsort(descending=True).split(slots)
    narrow = [examples.select(rows).trimmed(model.special).source for rows in by_length]
    return {
        FULL_BATCHES: lambda: sum(_full_batch(model, source, length) for source in sources),
        BARE_ENGINE: by_engine,
        ROLLOUT: by_rollout,
        STREAM: by_stream,
        FLOOR: lambda: (
            sum(_equal_length_batch(model, source, mean, length) for source in narrow) and tokens
        ),
    }


@torch.no_grad()
def _full_batch(model: SequenceModel, source: Tensor, max_steps: int) -> int:
    """Tokens of a batch that is written until its longest text ends, all rows at every step."""
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


@torch.no_grad()
def _equal_length_batch(model: SequenceModel, source: Tensor, steps: int, max_steps: int) -> int:
    """Read a batch and step it: what its texts would cost if all had the same length."""
    previous, cache = (
        torch.full((len(source),), model.special.start),
        model.start(source, max_steps),
    )
    for _ in range(steps):
        _, cache = model.step(previous, cache)
    return steps * len(source)
