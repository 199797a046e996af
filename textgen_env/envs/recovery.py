"""Copying with a slippery pen: how well the best policy does, and a clone of data, is known.

The environment sometimes writes another word than the one chosen; the token UNDO takes the last
token of the text away. References show clean copies, and so never UNDO: who clones them cannot know
it. The history of what was written, UNDO included, is the prefix that the environment shows, and
only grows; the text is what is left of it (`resolved`).

Only words slip: the end token and UNDO are written as chosen. So the number of wrong words on the
way to a finished text is negative binomial, and the success of both policies has a closed form
(`known_success`). What this task cannot show is the quality of real text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.envs.rewards import Step
from textgen_env.tasks import TASKS
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import TaskConfig, TextTask
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer, Tokenizer

SPECIAL = Tokenizer.special
UNDO, UNDO_PIECE = len(SPECIAL_PIECES), "undo"  # the first token that is not special; words follow


@dataclass(frozen=True)
class Slips:
    """Noise that writes a random word instead of the chosen one.

    Attributes:
        probability: that a word is drawn anew, from all words alike and thus sometimes itself.
        num_words: distinct words.
    """

    probability: float
    num_words: int

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {self.probability}")

    @property
    def error(self) -> float:
        """Probability that another word than the chosen one is written."""
        return self.probability * (1 - 1 / self.num_words)

    def __call__(self, actions: Tensor, generator: torch.Generator) -> Tensor:
        """(B,) int64, what is written instead of `actions`: words may slip, other tokens do not."""
        first, shape, device = UNDO + 1, actions.shape, actions.device
        words = torch.randint(
            first, first + self.num_words, shape, generator=generator, device=device
        )
        slipping = torch.rand(shape, generator=generator, device=device) < self.probability
        return words.where(slipping & (actions >= first), actions)


@dataclass(frozen=True)
class RecoveryConfig(TaskConfig):
    """Which sources are copied, and how slippery the pen is.

    Attributes:
        copy: the sources.
        slip: probability that a word is drawn anew.
    """

    copy: CopyConfig = field(default_factory=lambda: CopyConfig(num_words=5))
    slip: float = 0.1

    @property
    def slips(self) -> Slips:
        """The environment's noise."""
        return Slips(self.slip, self.copy.num_words)

    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task, as `recovery_task` does."""
        del tokenizer  # every word is one token of its own
        return recovery_task(self)

    @property
    def env_settings(self) -> Mapping[str, Any]:
        """The slips, and the reward that looks at the resolved text."""
        return {"noise": self.slips, "reward": recovered}


TASKS.register("recovery", RecoveryConfig())


def recovery_task(config: RecoveryConfig | None = None) -> TextTask:
    """The copy task with UNDO in its vocabulary, and room to undo every other word of a text.

    The environment is to be made with the configuration's `env_settings`.
    """
    config = config or RecoveryConfig()
    return replace(
        copy_task(config.copy),
        name="recovery",
        tokenizer=Tokenizer.from_words([UNDO_PIECE, *config.copy.words]),
        max_target_length=2 * config.copy.max_length + 1,
    )


def resolved(history: Tensor) -> Tensor:
    """(B, T) int64, the text that is left of `history`, PAD after it.

    A token is left if from it on the text was never shorter than with it. UNDO on an empty text
    does nothing.

    Args:
        history: (B, T) int64, the tokens written, UNDO among them, PAD after the last.
    """
    change = torch.where(history == UNDO, -1, 1).masked_fill(history == SPECIAL.pad, 0)
    height = change.cumsum(1)
    length = height - height.cummin(1).values.clamp(max=0)  # of the text, after each token
    shortest = length.flip(1).cummin(1).values.flip(1)  # from each token on
    left = (change == 1) & (length == shortest)
    place = (length - 1).where(left, history.shape[1])  # those not left go to a column cut off
    text = F.pad(torch.full_like(history, SPECIAL.pad), (0, 1), value=SPECIAL.pad)
    return text.scatter(1, place, history)[:, :-1]


def recovered(step: Step) -> Tensor:
    """1 at the end of an episode whose resolved text is the reference, end token included."""
    text, references = _widened(resolved(step.state.prefix), step.references)
    return ((text == references).all(1) & step.finished).float()


def recovery_policy(source: Tensor, prefix: Tensor, length: Tensor) -> Tensor:
    """The best action, (B,) int64: UNDO while the text is wrong, else the next token of the source.

    Nothing reaches the reference in fewer tokens, whatever slips: a wrong word must be undone, and
    a right one is most likely when it is chosen.

    Args:
        source: (B, S) int64 source token ids, PAD after the end token.
        prefix: (B, T) int64, the history; what stands after `length` is not looked at.
        length: (B,) int64, tokens written, below T + 1.
    """
    places = torch.arange(prefix.shape[1], device=prefix.device)
    history = prefix.masked_fill(places >= length[:, None], SPECIAL.pad)
    text, source = _widened(resolved(history), source)
    written = text != SPECIAL.pad
    right = ((text == source) | ~written).all(1)
    following = source.gather(1, written.sum(1, keepdim=True)).squeeze(1)
    return following.where(right, UNDO)


def known_success(length: int, max_steps: int, error: float) -> float:
    """Probability that the best policy finishes a text: it is right before the steps run out.

    With e the error: every wrong word costs itself and an UNDO, so that at most
    k = (max_steps - length - 1) // 2 may come before the last right one, and the sum is
    sum over n = 0..k of C(length + n - 1, n) (1 - e)^length e^n.

    With room for nothing but the text, `max_steps` = `length` + 1, this is (1 - e)^length, the
    success of whoever never undoes.

    Args:
        length: words of the text, at least 1.
        max_steps: T, more than `length`.
        error: e, the probability that another word than the chosen one is written.

    Returns:
        In [0, 1].
    """
    most = (max_steps - length - 1) // 2
    wrong = sum(math.comb(length + n - 1, n) * error**n for n in range(most + 1))
    return (1 - error) ** length * wrong


def _widened(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both padded to the width of the wider, and one column more."""
    width = max(one.shape[1], other.shape[1]) + 1
    padded = [F.pad(each, (0, width - each.shape[1]), value=SPECIAL.pad) for each in (one, other)]
    return padded[0], padded[1]
