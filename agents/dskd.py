"""Dual-space distillation: student and teacher are compared in each other's hidden space.

The distributions of two models come from different heads, and say little about what their
hidden states have in common. Two linear projectors carry the hidden states of each into the space
of the other, where both are read by one head. A teacher with another tokenizer has other positions
and another vocabulary: there an attention between the two token sequences, cross-model attention,
finds out which states belong together.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textgen_agents.agent import CompanionAgent
from textgen_agents.losses.divergences import cross_entropy, forward_kl
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.state_chunks import mean_in_chunks
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import data_rollout
from textgen_env.bounds import check_shares
from textgen_env.experts.cross_tokenizer import CrossTokenizerExpert
from textgen_env.experts.expert import Expert
from textgen_env.experts.white_box import check_white_box, hidden_answers, teacher_states
from textgen_env.models.hidden_states import HiddenStates, frozen, hidden_states_of
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.types import SpecialTokens, Trajectories

EXCLUDED = -1e5  # attention score of positions that are padding on either side


@dataclass(frozen=True)
class DSKD(CompanionAgent):
    """Distillation in both hidden spaces, from a teacher with the student's tokenizer.

    Roll-in: data. Label: the data's token, and the teacher's hidden states. Loss: (1 - rate) * -log
    of the student's probability of the token + rate * three terms. The teacher's states in the
    student's space, read by the student's head, are trained to give the data's token; the student
    learns their distribution as a constant; the student's states in the teacher's space, read by
    the teacher's head, learn the teacher's distribution. Both divergences are forward KL at
    `temperature`, and no head is trained by what is projected.
    Differs from the authors' program in: the schedule, and with it the learning rates, of which the
    projectors' is twice the student's as there.

    Attributes:
        rate: share of the three terms of distillation in the loss, in [0, 1].
        temperature: of both distributions in a divergence, above 0.

    Source: Zhang et al. 2024, section 3, arXiv:2406.17328.
    """

    companion_rate_factor = 2.0
    student_writes = False
    rate: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _check_settings(self)

    def check_expert(self, expert: Expert) -> None:
        """Raise `ExpertError` unless the expert has hidden states."""
        super().check_expert(expert)
        teacher_states(expert)

    def companions(self, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
        """Return the projectors of hidden states to either side."""
        return _projectors(hidden_states_of(student, "student"), teacher_states(expert))

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes."""
        return data_rollout(context)

    def joint_loss(
        self,
        batch: LabelledBatch,
        student: SequenceModel,
        expert: Expert,
        companions: nn.ModuleDict,
    ) -> Tensor:
        """Return the loss of the student and of the projectors."""
        states, teacher = batch.trajectories, teacher_states(expert)
        learner = hidden_states_of(student, "student")
        hidden, answers = _hidden(learner, states), hidden_answers(expert, states)

        def losses(hidden: Tensor, answers: Tensor, actions: Tensor) -> Tensor:
            with frozen(learner):
                in_student = learner.project(companions["to_student"](answers))
            with frozen(teacher):
                in_teacher = teacher.project(companions["to_teacher"](hidden))
                teacher_logits = teacher.project(answers)
            logits = learner.project(hidden)
            distilled = cross_entropy(in_student, actions)
            distilled = distilled + _tempered_kl(logits, in_student, self.temperature)
            distilled = distilled + _tempered_kl(in_teacher, teacher_logits, self.temperature)
            return (1 - self.rate) * cross_entropy(logits, actions) + self.rate * distilled

        inputs = (hidden, answers, states.actions)
        trained = (*learner.parameters(), *companions.parameters())
        return mean_in_chunks(losses, inputs, states, trained, student.vocab_size)


@dataclass(frozen=True)
class DSKDWithCMA(CompanionAgent):
    """Distillation in both hidden spaces, from a teacher whose tokenizer may be another one.

    Roll-in: data. Label: the data's token, and the teacher's hidden states along the same text in
    its own tokens. Loss: as DSKD's, where a state of one side is a mean of the other side's
    projected states. Its weights are a softmax of products between trained queries, made of the
    student's embeddings of two successive tokens, and the teacher's embeddings of two. The student
    learns the projected teacher's distribution only where its best token is the data's.
    Differs from the authors' program in: the teacher's embeddings and states are scaled to a root
    mean square of 1 each, not by a deviation over the batch, which would depend on how a batch is
    cut into parts; the first token's predecessor is the end token; the schedule.

    Attributes:
        rate: share of the three terms of distillation in the loss, in [0, 1].
        temperature: of both distributions in a divergence, above 0.

    Source: Zhang et al. 2024, section 3.3, arXiv:2406.17328.
    """

    companion_rate_factor = 2.0
    bridges_tokenizers = True
    student_writes = False
    rate: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _check_settings(self)

    def check_expert(self, expert: Expert) -> None:
        """Raise `ExpertError` unless the expert, with whatever tokenizer, has hidden states."""
        teacher_states(_in_own_tokens(expert))

    def companions(self, student: SequenceModel, expert: Expert) -> nn.ModuleDict:
        """Return the projectors of hidden states to either side, and that of the queries."""
        learner = hidden_states_of(student, "student")
        teacher = teacher_states(_in_own_tokens(expert))
        modules = _projectors(learner, teacher)
        modules["query"] = nn.Linear(2 * learner.width, 2 * teacher.width)
        return modules

    def collect(self, context: Context) -> LabelledBatch:
        """Return the references as prefixes."""
        return data_rollout(context)

    def joint_loss(
        self,
        batch: LabelledBatch,
        student: SequenceModel,
        expert: Expert,
        companions: nn.ModuleDict,
    ) -> Tensor:
        """Return the loss of the student and of the projectors."""
        states, learner = batch.trajectories, hidden_states_of(student, "student")
        own, asked = _own_states(expert, states), _in_own_tokens(expert)
        teacher, hidden = teacher_states(asked), _hidden(learner, states)
        answers = hidden_answers(asked, own)
        texts = _Texts(states, own, student.special, asked.special)
        aligned = _aligned(texts, learner, teacher, companions["query"])
        values = _scaled(answers) + _scaled(_embedded(teacher, own.actions, asked.special).detach())
        to_student = aligned.softmax(-1) @ companions["to_student"](values)
        to_teacher = aligned.transpose(1, 2).softmax(-1) @ companions["to_teacher"](hidden)

        def in_students_space(hidden: Tensor, carried: Tensor, actions: Tensor) -> Tensor:
            with frozen(learner):
                in_student = learner.project(carried)
            logits = learner.project(hidden)
            is_right = in_student.argmax(-1) == actions
            learned = _tempered_kl(logits, in_student, self.temperature).where(is_right, 0.0)
            distilled = cross_entropy(in_student, actions) + learned
            return (1 - self.rate) * cross_entropy(logits, actions) + self.rate * distilled

        def in_teachers_space(carried: Tensor, answers: Tensor) -> Tensor:
            with frozen(teacher):
                in_teacher, teacher_logits = teacher.project(carried), teacher.project(answers)
            return _tempered_kl(in_teacher, teacher_logits, self.temperature)

        inputs, size = (hidden, to_student, states.actions), student.vocab_size
        loss = mean_in_chunks(in_students_space, inputs, states, learner.parameters(), size)
        size = check_white_box(asked).vocab_size
        distance = mean_in_chunks(in_teachers_space, (to_teacher, answers), own, (), size)
        return loss + self.rate * distance * own.mask.sum() / states.mask.sum()


class _Texts(NamedTuple):
    """The same texts in the tokens of student and teacher, and the special tokens of both."""

    student: Trajectories
    teacher: Trajectories
    student_special: SpecialTokens
    teacher_special: SpecialTokens


def _check_settings(agent: DSKD | DSKDWithCMA) -> None:
    """Raise `ValueError` unless the settings of the loss are in their ranges."""
    check_shares(agent, "rate")
    if not 0 < agent.temperature < math.inf:
        raise ValueError(
            f"temperature must be above 0 and finite, got {agent.temperature}; 2 is the authors'"
        )


def _projectors(student: HiddenStates, teacher: HiddenStates) -> nn.ModuleDict:
    """Return the projectors between the hidden states of two models."""
    return nn.ModuleDict(
        {
            "to_student": nn.Linear(teacher.width, student.width),
            "to_teacher": nn.Linear(student.width, teacher.width),
        }
    )


def _hidden(student: HiddenStates, states: Trajectories) -> Tensor:
    """Return the student's last hidden states (B, T, D), with gradient."""
    return student.hidden(states.source, states.actions)


def _tempered_kl(logits: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Return the (...) forward KL from a constant label, both at `temperature`, nats."""
    return forward_kl(logits / temperature, label.detach() / temperature)


def _in_own_tokens(expert: Expert) -> Expert:
    """Return the teacher that reads its own tokens."""
    return expert.expert if isinstance(expert, CrossTokenizerExpert) else expert


def _own_states(expert: Expert, states: Trajectories) -> Trajectories:
    """Return the texts of `states` in the teacher's own tokens."""
    bridged = isinstance(expert, CrossTokenizerExpert)
    return expert.in_own_tokens(states) if bridged else states


def _aligned(
    texts: _Texts, student: HiddenStates, teacher: HiddenStates, query: nn.Module
) -> Tensor:
    """Return the scores (B, T, T') of the student's positions and the teacher's."""
    with torch.no_grad():
        asked = _two_tokens(student, texts.student, texts.student_special)
        keys = _scaled(_two_tokens(teacher, texts.teacher, texts.teacher_special))
    scores = query(asked).float() @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
    both = texts.student.mask[:, :, None] & texts.teacher.mask[:, None]
    return scores.masked_fill(~both, EXCLUDED)


def _two_tokens(model: HiddenStates, states: Trajectories, special: SpecialTokens) -> Tensor:
    """Return the embeddings (B, T, 2 D) of each token's predecessor and of itself, float32."""
    previous = F.pad(states.actions, (1, 0), value=special.end)[:, :-1]
    pair = [_embedded(model, tokens, special) for tokens in (previous, states.actions)]
    return torch.cat(pair, -1)


def _embedded(model: HiddenStates, tokens: Tensor, special: SpecialTokens) -> Tensor:
    """Return the embeddings (B, T, D), float32; padding may be no token of the model's."""
    return model.embed(tokens.masked_fill(tokens == special.pad, special.end)).float()


def _scaled(vectors: Tensor) -> Tensor:
    """Return vectors (..., D) with a root mean square of 1 each."""
    return F.rms_norm(vectors, vectors.shape[-1:])
