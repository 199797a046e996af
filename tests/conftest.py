"""Shared fixtures: one thread and the smallest real models and tasks."""

import os
import tempfile
from dataclasses import dataclass

import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import settings
from torch import Tensor, nn

from tests.support.toy import lively_transformer, random_sources, step_by_step
from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.types import SpecialTokens
from textgen_experiments.runs.malloc import spare_imports

CACHE = tempfile.TemporaryDirectory()  # tests neither read nor write the user's
os.environ["TEXTGEN_CACHE"] = CACHE.name
torch.set_num_threads(1)  # more make tiny trainings many times slower
settings.register_profile("shared machine", deadline=None)  # how long an example takes says little
settings.load_profile("shared machine")


def pytest_collection_finish():
    """Let no search for garbage look at modules and tests, of which there are many."""
    spare_imports()


@pytest.fixture(autouse=True)
def one_thread():
    """Return to one thread after a test that has taken more."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def transformer():
    """Return a two-layer Transformer over 50 tokens, in evaluation mode."""
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=50, width=32, num_heads=2, feed_forward=64)
    return Transformer(config).eval()


@pytest.fixture(scope="session")
def tiny_task():
    """Return the task of copying 2 to 5 of 8 words."""
    return copy_task(
        CopyConfig(8, min_length=2, max_length=5, num_train=64, num_validation=12, num_test=12)
    )


@pytest.fixture
def tiny_teacher(tiny_task):
    """Return an untrained Transformer for `tiny_task`, in evaluation mode."""
    torch.manual_seed(1)
    vocab_size = tiny_task.tokenizer.vocab_size
    config = TransformerConfig(vocab_size, 16, num_heads=2, feed_forward=32, dropout=0.0)
    return Transformer(config).eval()


@pytest.fixture(scope="session")
def make_student(tiny_task):
    """seed, dropout -> an untrained recurrent model for `tiny_task`, in evaluation mode."""

    def make(seed=2, dropout=0.0):
        torch.manual_seed(seed)
        return Recurrent(RecurrentConfig(tiny_task.tokenizer.vocab_size, 16, 1, 1, dropout)).eval()

    return make


@pytest.fixture
def tiny_student(make_student):
    """Return an untrained recurrent model for `tiny_task`, in evaluation mode, without dropout."""
    return make_student()


@pytest.fixture(scope="session")
def make_env():
    """task, number of slots, expert, examples -> an environment as the learner uses it."""

    def make(task, num_envs, expert=None, examples=None):
        return TextGenVectorEnv(
            task,
            num_envs,
            examples=examples,
            expert=expert,
            reward=no_reward,
            autoreset_mode=AutoresetMode.DISABLED,
        )

    return make


@dataclass(frozen=True)
class TableCache:
    """What a `TableModel` knows of B rows: the source's first token and the steps taken."""

    first: Tensor
    steps: Tensor

    def select_rows(self, index):
        return TableCache(self.first[index], self.steps[index])

    def repeat_rows(self, count):
        return self.select_rows(torch.arange(len(self.first)).repeat_interleave(count))

    def reorder_rows(self, index):
        return self.select_rows(index)

    def reset_rows(self, mask, fresh, index):
        fresh = fresh.select_rows(index)
        return TableCache(fresh.first.where(mask, self.first), fresh.steps.where(mask, self.steps))

    def rewind(self, history, index):
        steps = torch.stack([each.steps for each in history])
        return TableCache(self.first, steps.gather(0, index[None])[0])


class TableModel(nn.Module):
    """A random policy: logits by the source's first token, the previous token and the position.

    Unlike an untrained network it ends its texts, after as many steps as the tables will have it,
    and like a trained one it never writes PAD.
    """

    def __init__(self, vocab_size, max_steps, seed):
        super().__init__()
        self.vocab_size, self.special = vocab_size, SpecialTokens()
        generator = torch.Generator().manual_seed(seed)
        tables = 2 * torch.randn(3, max(vocab_size, max_steps), vocab_size, generator=generator)
        self.tables = nn.Parameter(tables)

    def start(self, source, max_steps):
        del max_steps
        return TableCache(source[:, 0], torch.zeros_like(source[:, 0]))

    def step(self, previous, cache):
        logits = self._logits(cache.first, previous, cache.steps)
        return logits, TableCache(cache.first, cache.steps + 1)

    def step_block(self, tokens, cache):
        return step_by_step(self, tokens, cache)

    def sequence_logits(self, source, actions):
        previous = actions.roll(1, 1)
        previous[:, 0] = self.special.start
        return self._logits(source[:, :1], previous, torch.arange(actions.shape[1])[None])

    def _logits(self, first, previous, position):
        position = position.clamp(max=self.tables.shape[1] - 1)
        return self.tables[0, first] + self.tables[1, previous] + self.tables[2, position]


@pytest.fixture(scope="session")
def make_table_model():
    """task, seed -> a `TableModel` for the task."""

    def make(task, seed):
        return TableModel(task.tokenizer.vocab_size, task.max_target_length, seed)

    return make


@pytest.fixture(scope="module")
def writer():
    """Return an untrained model whose texts vary and end after 3 to 20 tokens."""
    return lively_transformer()


@pytest.fixture(scope="module")
def sources():
    """23 sources of 1 to 12 tokens for `writer`."""
    return random_sources(23, 12)
