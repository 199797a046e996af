"""Noisy copying with an UNDO token, where the success of the best policy has a closed form.

The environment sometimes writes another word than the one chosen, and the token UNDO removes the
last token of the text. References are clean copies without UNDO, so a policy cloned from them never
recovers. The prefix that the environment shows is the history of all tokens, UNDO included; the
text is what remains of it (`resolved`).

Noise changes words only: the end token and UNDO are written as chosen. So the number of wrong words
before a finished text is negative binomial, which gives the success of the best policy and of the
clone (`known_success`). The task says nothing about the quality of real text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.bounds import check_at_least, check_shares
from textgen_env.envs.rewards import Step
from textgen_env.tasks import TASKS
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import TaskConfig, TextTask
from textgen_env.tokenizers.subword import SPECIAL_PIECES, TextTokenizer, Tokenizer

SPECIAL_TOKENS = Tokenizer.special
UNDO, UNDO_PIECE = len(SPECIAL_PIECES), "undo"  # the first token that is not special; words follow


@dataclass(frozen=True)
class Slips:
    """Noise that replaces chosen words by random ones.

    Attributes:
        probability: the probability that a word is redrawn, uniformly from all words, itself
            included.
        num_words: the number of distinct words.
    """

    probability: float
    num_words: int

    def __post_init__(self) -> None:
        check_shares(self, "probability")
        check_at_least(self, num_words=1)

    @property
    def error(self) -> float:
        """Probability that a word other than the chosen one is written."""
        return self.probability * (1 - 1 / self.num_words)

    def __call__(self, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the (B,) int64 tokens written for `actions`, with some words redrawn."""
        first, shape, device = UNDO + 1, actions.shape, actions.device
        words = torch.randint(
            first, first + self.num_words, shape, generator=generator, device=device
        )
        slipping = torch.rand(shape, generator=generator, device=device) < self.probability
        return words.where(slipping & (actions >= first), actions)


@dataclass(frozen=True)
class RecoveryConfig(TaskConfig):
    """Configuration of the recovery task.

    Attributes:
        copy: the sources.
        slip: the probability that a word is redrawn, in [0, 1].
    """

    copy: CopyConfig = field(default_factory=lambda: CopyConfig(num_words=5))
    slip: float = 0.1

    def __post_init__(self) -> None:
        check_shares(self, "slip")

    @property
    def slips(self) -> Slips:
        """Noise of the task's environment."""
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
    """Return the copy task with UNDO in its vocabulary and steps to undo as many words as it has.

    Its environment needs the configuration's `env_settings`.
    """
    config = config or RecoveryConfig()
    return replace(
        copy_task(config.copy),
        name="recovery",
        tokenizer=Tokenizer.from_words([UNDO_PIECE, *config.copy.words]),
        max_target_length=2 * config.copy.max_length + 1,
    )


def resolved(history: Tensor) -> Tensor:
    """Return the text that remains of `history` after every UNDO, (B, T) int64, PAD after it.

    A token remains if the text was never shorter afterwards than with it. UNDO on an empty text
    does nothing.

    Args:
        history: (B, T) int64, all tokens written, UNDO included, PAD after the last.
    """
    change = torch.where(history == UNDO, -1, 1).masked_fill(history == SPECIAL_TOKENS.pad, 0)
    height = change.cumsum(1)
    length = height - height.cummin(1).values.clamp(max=0)  # of the text, after each token
    shortest = length.flip(1).cummin(1).values.flip(1)  # from each token on
    remains = (change == 1) & (length == shortest)
    # Tokens that do not remain go to an extra column, which is cut off.
    position = (length - 1).where(remains, history.shape[1])
    text = F.pad(torch.full_like(history, SPECIAL_TOKENS.pad), (0, 1), value=SPECIAL_TOKENS.pad)
    return text.scatter(1, position, history)[:, :-1]


def recovered(step: Step) -> Tensor:
    """Return 1 at the end of an episode whose resolved text is the reference, else 0."""
    text, references = _widened(resolved(step.state.prefix), step.references)
    return ((text == references).all(1) & step.finished).float()


def recovery_policy(source: Tensor, prefix: Tensor, length: Tensor) -> Tensor:
    """Return the best action, (B,) int64: UNDO if the text is wrong, else the source's next token.

    No policy needs fewer tokens, whatever the noise: a wrong word must be undone, and a right one
    is most likely when it is chosen.

    Args:
        source: (B, S) int64 source token ids, PAD after the end token.
        prefix: (B, T) int64, the history, arbitrary after `length`.
        length: (B,) int64, the number of tokens written, at most T.
    """
    positions = torch.arange(prefix.shape[1], device=prefix.device)
    history = prefix.masked_fill(positions >= length[:, None], SPECIAL_TOKENS.pad)
    text, source = _widened(resolved(history), source)
    written = text != SPECIAL_TOKENS.pad
    correct = ((text == source) | ~written).all(1)
    next_token = source.gather(1, written.sum(1, keepdim=True)).squeeze(1)
    return next_token.where(correct, UNDO)


def known_success(length: int, max_steps: int, error: float) -> float:
    """Return the probability that the best policy writes the reference within the steps.

    Every wrong word takes two steps, its own and an UNDO. So at most
    k = (max_steps - length - 1) // 2 wrong words may precede the last right one. The probability
    is the sum over n = 0..k of C(length + n - 1, n) (1 - e)^length e^n.

    With steps for the text alone, `max_steps` = `length` + 1, this is (1 - e)^length: the success
    of a policy that never undoes.

    Args:
        length: the number of words of the text, at least 1.
        max_steps: T, more than `length`.
        error: e, the probability that a word other than the chosen one is written.

    Returns:
        The probability, in [0, 1].
    """
    max_wrong = (max_steps - length - 1) // 2
    wrong = sum(math.comb(length + n - 1, n) * error**n for n in range(max_wrong + 1))
    return (1 - error) ** length * wrong


def _widened(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return both padded to one column more than the wider has."""
    width = max(one.shape[1], other.shape[1]) + 1
    padded = [
        F.pad(each, (0, width - each.shape[1]), value=SPECIAL_TOKENS.pad) for each in (one, other)
    ]
    return padded[0], padded[1]
