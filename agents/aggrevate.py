"""AggreVaTe: an action is worth what the expert can still make of the text after it.

The student writes a text, at one place in it draws its token anew, and the expert goes on from
there; how much better the text's BLEU is than where the expert goes on without that token is the
token's advantage. It is for a student that writes already, and for a learning rate far below the
others': most advantages are 0, and Adam makes large steps of rare gradients. Left out: the
aggregation of data, and regression on costs instead of a gradient.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.agent import Agent
from agents.behaviors import chooser
from agents.divergences import cross_entropy, masked_mean
from agents.rollout import student_or_data
from textgen_env.decoding import Sampling
from textgen_env.expert import Expert
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.token_metrics import Texts, sentence_bleu
from textgen_env.types import Trajectories
from textgen_env.vector_env import TextGenVectorEnv

LONGEST = 1.5  # times the reference's length, where texts are cut off


@dataclass(frozen=True)
class AggreVaTe(Agent):
    """Make actions more probable after which the expert writes better, and others less.

    Roll-in: the student draws a text, which is cut off at a place drawn evenly from it, and its
    last token is drawn again. Label: for that token alone its advantage, the BLEU of the text that
    the expert's most probable tokens make of it, less that of the one which they make without it.
    Loss: minus advantage times the log-probability of that token; the expected gradient is that of
    the expected cost-to-go of the student's actions.
    Differs from the paper in: the deviation is drawn from the student, not evenly from all tokens,
    most of which no expert could mend; BLEU of tokens is the reward.

    Source: Ross and Bagnell 2014, algorithm 1, arXiv:1406.5979; the gradient: Sun et al. 2017,
    section 4, arXiv:1703.01030; on text: Hubert et al. 2023, arXiv:2307.08426.
    """

    needs_distribution: ClassVar[bool] = False

    def collect(
        self,
        indices: Tensor,
        env: TextGenVectorEnv,
        student: SequenceModel,
        progress: float,
        generator: torch.Generator,
    ) -> Trajectories:
        """Beginnings of the student's texts; the last token of each is the deviation."""
        del progress
        sampling = Sampling()
        texts = student_or_data(
            indices, env, student, beta=0.0, sampling=sampling, generator=generator
        )
        share = torch.rand(len(texts), generator=generator).to(env.device)
        last = (share * texts.mask.sum(1)).long()
        # Drawn anew, for what was there has decided how long the text is and so what is the last.
        with torch.no_grad():
            logits = student.sequence_logits(texts.source, texts.actions)
        rows = torch.arange(len(texts), device=env.device)
        deviation = chooser(sampling, env, generator)(logits[rows, last])
        actions = texts.actions.index_put((rows, last), deviation)
        mask = torch.arange(actions.shape[1], device=env.device) <= last[:, None]
        return replace(texts, actions=actions.masked_fill(~mask, env.special.pad), mask=mask)

    def loss(self, trajectories: Trajectories, student: SequenceModel, expert: Expert) -> Tensor:
        """Advantage times cross-entropy on the deviation; other states add nothing but count."""
        length = trajectories.mask.sum(1)
        advantage = worth(trajectories, length, expert) - worth(trajectories, length - 1, expert)
        logits = student.sequence_logits(trajectories.source, trajectories.actions)
        losses = advantage[:, None] * cross_entropy(logits, trajectories.actions)
        position = torch.arange(losses.shape[1], device=losses.device)
        deviation = position == length[:, None] - 1
        return masked_mean(losses.where(deviation, 0.0), trajectories.mask)


def worth(trajectories: Trajectories, length: Tensor, expert: Expert) -> Tensor:
    """(B,) BLEU of what the expert makes of the first `length`, (B,) int64, tokens of each text."""
    special, actions = expert.special, trajectories.actions
    limit = (LONGEST * (trajectories.reference != special.pad).sum(1)).long()
    missing = max(0, int(limit.max()) - actions.shape[1])
    prefix = F.pad(actions, (0, missing), value=special.pad)
    text = Texts.of(expert.complete(trajectories.expert_source, prefix, length), special)
    cut = Texts(text.tokens, torch.minimum(text.length, limit))
    return sentence_bleu(cut, Texts.of(trajectories.reference, special))
