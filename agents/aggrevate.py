"""AggreVaTe: the value of an action is the score of the text that the expert makes after it.

The student writes a text, at some places of it a token is drawn that is not its first choice, and
the expert continues from there. The token's advantage is the BLEU of that text less that of the one
which the expert makes of the first choice. A deviation says little by itself, so the student must
write already, an update must have hundreds of them and a low learning rate. Left out: the
aggregation of data, and regression on costs in place of a gradient.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.agent import Agent, LearnsFrom
from textgen_agents.losses.labels import LabelledBatch, Top1
from textgen_agents.rollouts.behaviors import token_sampler
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import student_rollout
from textgen_env.bounds import check_at_least
from textgen_env.envs.text_metrics import TokenTexts, token_bleu
from textgen_env.experts.expert import Expert
from textgen_env.generation.sampling import Sampling
from textgen_env.models.hidden_states import states_at
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.token_positions import TokenPositions
from textgen_env.types import SpecialTokens, Trajectories

MAX_LENGTH_RATIO = 1.5  # of a completed text to its reference, where it is cut off


@dataclass(frozen=True)
class AggreVaTe(Agent):
    """Policy gradient on the advantage of single deviations, as the expert completes them.

    Roll-in: the student draws a text, which is cut off at each of several places drawn evenly from
    it, and its last token is drawn again, from all but the student's most probable one. Label: for
    that token alone its advantage, the BLEU of the text that the expert's most probable tokens make
    of it, less that of the one which they make of the student's most probable token.
    Loss: minus advantage times the log-probability of that token, times the probability that the
    student draws any but its most probable one; the expected gradient is that of the expected
    cost-to-go of the student's actions. Its most probable token and that probability are those of
    the student that drew, whatever dropout does to it when it learns.
    Differs from the paper in: the deviation is drawn from the student, not evenly from all tokens,
    most of which no expert could mend; never is its most probable token drawn, which has advantage
    0 and so would teach nothing; several deviations a text in place of one, so that 64 texts give
    512; BLEU of tokens is the reward.

    Attributes:
        deviations: deviations from each text, at least 1. The expert completes two texts for each.

    Source: Ross and Bagnell 2014, algorithm 1, arXiv:1406.5979; the gradient: Sun et al. 2017,
    section 4, arXiv:1703.01030; on text: Hubert et al. 2023, arXiv:2307.08426.
    """

    learns_from = LearnsFrom.TOKENS
    expects_trained_student = True
    learning_rate_factor = 0.02  # 1e-5 where cross-entropy has 5e-4
    label = Top1()
    deviations: int = 8

    def __post_init__(self) -> None:
        check_at_least(self, deviations=1)

    def collect(self, context: Context) -> LabelledBatch:
        """Return beginnings of the student's texts; the last token of each is the deviation."""
        env, student = context.env, context.student
        draw, best = token_sampler(Sampling(), context), token_sampler(None, context)
        texts = student_rollout(context, Sampling()).trajectories
        rows = torch.arange(len(texts), device=env.device).repeat_interleave(self.deviations)
        share = torch.rand(len(rows), generator=context.generator).to(env.device)
        last = (share * texts.mask.sum(1)[rows]).long()
        with torch.no_grad():
            logits = logits_at(student, texts, rows, last)
        others = logits.scatter(1, best(logits)[0][:, None], float("-inf"))
        actions = texts.actions[rows].scatter(1, last[:, None], draw(others)[0][:, None])
        mask = torch.arange(actions.shape[1], device=env.device) <= last[:, None]
        actions = actions.masked_fill(~mask, env.special.pad)
        deviations = replace(texts.select(rows), actions=actions, mask=mask, behavior_log_prob=None)
        return labelled(deviations, logits, env.expert)

    def loss(self, batch: LabelledBatch, student: SequenceModel, expert: Expert) -> Tensor:
        """Return minus advantage times log-probability of the deviation, as a mean over states."""
        states = batch.trajectories
        last = states.mask.sum(1, keepdim=True) - 1
        rows = torch.arange(len(states), device=last.device)
        logits = logits_at(student, states, rows, last.squeeze(1))
        chosen = permitted_log_probs(logits, expert.special).gather(
            1, states.actions.gather(1, last)
        )
        losses = -batch.labels["advantage"].gather(1, last) * chosen
        return losses.sum() / states.mask.sum()


def logits_at(student: SequenceModel, states: Trajectories, rows: Tensor, steps: Tensor) -> Tensor:
    """Return the student's logits at K of the states alone, (K, V).

    Args:
        student: gradients flow to its weights.
        states: of B texts.
        rows: (K,) int64, the text of each state, in [0, B).
        steps: (K,) int64, its place in the text, in [0, T).
    """
    count, width = states.actions.shape
    positions = TokenPositions((count, width), rows * width + steps)
    found = states_at(student, positions, states.source, states.actions)
    return found.project(found.states)


def labelled(deviations: Trajectories, logits: Tensor, expert: Expert) -> LabelledBatch:
    """Return `deviations` with the weighted advantage of each one's last counted token, (B, T).

    Args:
        deviations: beginnings of texts.
        logits: (B, V), of the student that drew the last tokens.
        expert: completes the texts.
    """
    mask, actions = deviations.mask, deviations.actions
    most, best = permitted_log_probs(logits, expert.special).max(1, keepdim=True)
    last = mask.sum(1, keepdim=True) - 1
    instead = replace(deviations, actions=actions.scatter(1, last, best))
    advantage = worth(deviations, expert) - worth(instead, expert)
    share = 1 - most.exp()  # of draws that are no first choice
    zeros = torch.zeros(mask.shape, device=mask.device)
    return LabelledBatch(
        deviations, {"advantage": zeros.scatter(1, last, share * advantage[:, None])}
    )


def permitted_log_probs(logits: Tensor, special: SpecialTokens) -> Tensor:
    """Return log-probabilities among the tokens that may be written, (..., V) float32.

    With the others no deviation could lower them again.
    """
    never = torch.tensor([special.pad, special.start], device=logits.device)
    return logits.float().index_fill(-1, never, float("-inf")).log_softmax(-1)


def worth(trajectories: Trajectories, expert: Expert) -> Tensor:
    """Return the BLEU of the texts that the expert makes of the counted actions, (B,)."""
    special, actions, length = expert.special, trajectories.actions, trajectories.mask.sum(1)
    limit = (MAX_LENGTH_RATIO * (trajectories.reference != special.pad).sum(1)).long()
    missing = max(0, int(limit.max()) - actions.shape[1])
    prefix = F.pad(actions, (0, missing), value=special.pad)
    text = TokenTexts.of(expert.complete(trajectories.expert_view, prefix, length), special)
    cut = TokenTexts(text.tokens, torch.minimum(text.length, limit))
    return token_bleu(cut, TokenTexts.of(trajectories.reference, special))
