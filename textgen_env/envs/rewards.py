"""Reward functions: from one step of all episodes to a number for each row.

Rewards are computed on the device of the state and never wait for it. They compare token ids; text
split into words is scored by evaluation. A reward with a setting is a frozen callable object.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.envs import text_metrics
from textgen_env.envs.text_metrics import TokenTexts
from textgen_env.models.cache_ops import host_sync_is_free
from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class Step:
    """One step of B episodes, the argument of a reward.

    Attributes:
        state: the state after the step.
        written: (B,) int64, the token that the step appended, PAD where the episode was over.
        alive: (B,) bool, True where the episode was not over before the step.
        references: (B, R) int64, the data set's targets, PAD after the end token; all PAD for a
            source without a reference, which a reward that looks at this cannot score.
        special: the ids of padding, start and end.
        expert_logits: (B, V) float, the expert's at the state before the step; None if it was not
            queried.
        policy_logits: (B, V) float, the policy's at that state; None if `step` was not given them.
    """

    state: State
    written: Tensor
    alive: Tensor
    references: Tensor
    special: SpecialTokens
    expert_logits: Tensor | None = None
    policy_logits: Tensor | None = None

    @property
    def finished(self) -> Tensor:
        """Mask of the episodes that this step ended, (B,) bool."""
        return self.state.done & self.alive


Reward = Callable[[Step], Tensor]
"""A step -> (B,) float32, 0 where the episode was over before."""


def no_reward(step: Step) -> Tensor:
    """Return 0 for every row, for agents that learn from the expert alone."""
    return torch.zeros_like(step.alive, dtype=torch.float32)


def exact_match(step: Step) -> Tensor:
    """Return 1 at the end of an episode whose text is the reference, end token included, else 0."""
    prefix, references = step.state.prefix, step.references
    shared = min(prefix.shape[1], references.shape[1])
    same = (prefix[:, :shared] == references[:, :shared]).all(1)
    not_longer = step.state.length <= shared
    not_shorter = (references[:, shared:] == step.special.pad).all(1)
    return (same & not_longer & not_shorter & step.finished).float()


def sentence_bleu(step: Step) -> Tensor:
    """Return the smoothed BLEU of a text at the end of its episode, in [0, 1], else 0.

    End tokens do not count. The metric is `text_metrics.token_bleu`.
    """
    return _at_the_end(step, text_metrics.token_bleu)


def rouge_l(step: Step) -> Tensor:
    """Return the ROUGE-L F-measure of a text at the end of its episode, in [0, 1], else 0.

    End tokens do not count. The metric is `text_metrics.token_rouge_l`.
    """
    return _at_the_end(step, text_metrics.token_rouge_l)


COMPARING_WITH_REFERENCES: tuple[Reward, ...] = (exact_match, sentence_bleu, rouge_l)
"""Rewards that need a reference for each example."""


def expert_log_prob(step: Step) -> Tensor:
    """Return the expert's log-probability of the token that was written, in nats, <= 0.

    Its sum over an episode is the expert's log-probability of the text.

    Raises:
        ValueError: the expert was not queried.
    """
    log_probs = _expert_logits(step).float().log_softmax(-1)
    return log_probs.gather(1, step.written[:, None]).squeeze(1).where(step.alive, 0.0)


@dataclass(frozen=True)
class NegativeDivergence:
    """Negative divergence of the policy from the expert at the state before the step, in nats.

    It rewards a distribution close to the expert's at the states that the policy visits, whichever
    token is then written.

    Attributes:
        divergence: (policy's logits, expert's logits), (B, V) each -> (B,) nats, >= 0, such as
            those of `textgen_agents.losses.divergences`.
    """

    divergence: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, step: Step) -> Tensor:
        """Return the reward of each row, (B,) float32, <= 0.

        Raises:
            ValueError: the expert was not queried, or the policy's logits were not given.
        """
        expert_logits = _expert_logits(step)
        if step.policy_logits is None:
            raise ValueError(
                "policy_logits must be given where the reward compares the policy with the expert, "
                "got None: pass policy_logits to step"
            )
        return -self.divergence(step.policy_logits, expert_logits).where(step.alive, 0.0)


def _expert_logits(step: Step) -> Tensor:
    """Return the expert's logits; a ValueError without them."""
    if step.expert_logits is None:
        raise ValueError(
            "expert_logits must be given where the reward depends on the expert, got None: "
            "make the environment with ask_expert=True"
        )
    return step.expert_logits


def _at_the_end(step: Step, metric: Callable[[TokenTexts, TokenTexts], Tensor]) -> Tensor:
    """Return `metric` of text and reference where the step ended an episode, else 0.

    On the CPU only the episodes that ended are scored, trimmed to their width. On an accelerator
    the host would have to wait to know which have ended, so all are scored.
    """
    finished = step.finished
    if not host_sync_is_free(finished.device):
        return metric(*_texts(step, slice(None))).where(finished, 0.0)
    earned, rows = no_reward(step), finished.nonzero().squeeze(1)
    if len(rows):
        earned[rows] = metric(*(text.trimmed() for text in _texts(step, rows)))
    return earned


def _texts(step: Step, rows: Tensor | slice) -> tuple[TokenTexts, TokenTexts]:
    """Return the texts of `rows` and their references, without end tokens."""
    state = step.state
    written = TokenTexts(state.prefix[rows], (state.length - state.terminated.long())[rows])
    return written, TokenTexts.of(step.references[rows], step.special)
