"""Sequence-level interpolation: of the teacher's hypotheses the one most like the reference.

Behavioral cloning of texts that the teacher finds likely and that are close to the data's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from textgen_agents.bases import OnTokens
from textgen_env.envs.text_metrics import TokenTexts, token_bleu
from textgen_env.experts.expert import Expert
from textgen_env.types import Examples, SpecialTokens, Trajectories

CHUNK = 256  # examples scored side by side, which takes memory by the square of their length


@dataclass(frozen=True)
class SeqInter(OnTokens):
    """Replace each reference by the best of the teacher's hypotheses and train on it.

    Roll-in: of what the teacher's beam search finds, the text with the best sentence BLEU to the
    reference, as data. Label: its next token. Loss: cross-entropy.
    Differs from the paper in: BLEU is of tokens, not of words; the student is what the run starts
    it from, there one that was trained before.

    Attributes:
        beam_size: hypotheses, at least 1.

    Source: Kim and Rush 2016, section 3.3, arXiv:1606.07947.
    """

    beam_size: int = 5

    def prepare(self, examples: Examples, expert: Expert, max_steps: int) -> Examples:
        """The sources with the chosen hypotheses; of equals the more probable one."""
        hypotheses = expert.write_n_best(examples, max_steps=max_steps, beam_size=self.beam_size)
        parts = zip(hypotheses.split(CHUNK), examples.reference.split(CHUNK), strict=True)
        chosen = [_best(texts, reference, expert.special) for texts, reference in parts]
        return replace(examples, reference=torch.cat(chosen))

    def labels(self, trajectories: Trajectories, expert: Expert) -> Tensor:
        """The chosen texts."""
        del expert
        return trajectories.actions


def _best(hypotheses: Tensor, reference: Tensor, special: SpecialTokens) -> Tensor:
    """(B, T), of (B, C, T) hypotheses the best for each reference (B, R), the first of equals."""
    references = TokenTexts.of(reference, special)
    scores = [token_bleu(TokenTexts.of(text, special), references) for text in hypotheses.unbind(1)]
    rows = torch.arange(len(reference), device=reference.device)
    return hypotheses[rows, torch.stack(scores, 1).argmax(1)]
