"""An expert whose tokens are not the student's: it can be asked for texts, and for nothing else.

What it writes is cut into the student's tokens. Its distributions are over tokens that the student
does not have, at states that the student's prefixes need not lead to, so that it gives none.
"""

from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textgen_env.decoding import Sampling
from textgen_env.dynamics import State
from textgen_env.expert import Expert, ExpertError, Queries
from textgen_env.models.sequence_model import AnyCache
from textgen_env.tokenizer import TextTokenizer
from textgen_env.types import Examples, Trajectories


class RetokenizingExpert(Expert):
    """Another expert, asked for texts.

    The examples that it is given have as `expert_source` what the expert reads, in its own tokens.

    Args:
        expert: is asked.
        tokenizer: the expert's.
        student_tokenizer: of what is answered.
        max_steps: most tokens that the expert writes, in its own.
    """

    def __init__(
        self,
        expert: Expert,
        tokenizer: TextTokenizer,
        student_tokenizer: TextTokenizer,
        max_steps: int,
    ) -> None:
        super().__init__(student_tokenizer.special)
        self.expert, self.tokenizer = expert, tokenizer
        self.student_tokenizer, self.max_steps = student_tokenizer, max_steps

    @property
    def queries(self) -> Queries:
        """What the other expert has been asked so far, in its own tokens."""
        return self.expert.queries

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """The examples with what it writes, at most `max_steps` of the student's tokens."""
        written = self.expert.write(examples, max_steps=self.max_steps, beam_size=beam_size)
        return replace(examples, reference=self._cut_anew(written.reference, max_steps))

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """(N, C, T) int64, its best texts; a row of PAD alone is no text."""
        written = self.expert.write_n_best(examples, max_steps=self.max_steps, beam_size=beam_size)
        return self._cut_anew(written.flatten(0, 1), max_steps).unflatten(0, written.shape[:2])

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """The examples with what it draws, at most `max_steps` of the student's tokens."""
        drawn = self.expert.sample(
            examples, max_steps=self.max_steps, sampling=sampling, generator=generator
        )
        return replace(examples, reference=self._cut_anew(drawn.reference, max_steps))

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Never answers."""
        self._refuse()

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Never answers."""
        self._refuse()

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Never answers."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ExpertError(
            "the teacher must have the student's tokenizer to be asked at the student's states; "
            "with another it can be asked for texts alone (seqkd, seqinter)"
        )

    def _cut_anew(self, written: Tensor, max_steps: int) -> Tensor:
        """(N, T) int64, the texts of (N, ...) tokens of the expert's in the student's."""
        pad, _, end = self.special
        texts = self.tokenizer.decode(written.tolist())
        rows = self.student_tokenizer.encode_targets(texts)
        ended = [torch.tensor([*row, end][:max_steps]) for row in rows]
        tokens = pad_sequence(ended, batch_first=True, padding_value=pad).to(written.device)
        nothing = (written == self.tokenizer.special.pad).all(1, keepdim=True)
        return tokens.masked_fill(nothing, pad)
