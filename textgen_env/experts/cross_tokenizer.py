"""An expert whose tokens are not the student's: all that it is asked and answers goes through text.

What it writes is cut into the student's tokens. At a state of the student's it reads the text so
far in its own tokens and says what it would write next; the student's piece that this begins with
is the label. Its distributions are over tokens that the student does not have: it gives none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, ExpertError, Queries
from textgen_env.experts.token_text import NO_TEXT, TokenText, is_text
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import AnyCache
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import Examples, Trajectories, Writer

MOST_PIECES = 4  # of bytes, that make up a character

Asked = tuple[int, tuple[int, ...]]
"""A state of the expert's: the row of its source, and the tokens written."""


class CrossTokenizerExpert(Expert):
    """Another expert, asked for texts and for its most probable next token.

    The examples that it is given have as `expert_source` what `view` made.

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
        self.expert, self.max_steps = expert, max_steps
        self.pieces, self.student_pieces = TokenText(tokenizer), TokenText(student_tokenizer)

    @property
    def queries(self) -> Queries:
        """What the other expert has been asked so far, in its own tokens."""
        return self.expert.queries

    @property
    def largest_k(self) -> int:
        """Only the best token is known."""
        return 0

    def view(self, texts: Sequence[str]) -> Tensor:
        """(N, E) int64, what the expert reads, padded as everything else in the student's tokens.

        Its own token of the padding's number is moved up by one, and all that follow.
        """
        tokenizer, pad = self.pieces.tokenizer, self.special.pad
        tokens = encode_sources(texts, tokenizer)
        moved = tokens + (tokens >= pad).long()
        return moved.masked_fill(tokens == tokenizer.special.pad, pad)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """The examples with what it writes, at most `max_steps` of the student's tokens."""
        written = self.expert.write(
            self._own(examples), max_steps=self.max_steps, beam_size=beam_size
        )
        return replace(examples, reference=self._cut_anew(written.reference, max_steps))

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """(N, C, T) int64, its best texts; a row of PAD alone is no text."""
        written = self.expert.write_n_best(
            self._own(examples), max_steps=self.max_steps, beam_size=beam_size
        )
        return self._cut_anew(written.flatten(0, 1), max_steps).unflatten(0, written.shape[:2])

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """The examples with what it draws, at most `max_steps` of the student's tokens."""
        drawn = self.expert.sample(
            self._own(examples), max_steps=self.max_steps, sampling=sampling, generator=generator
        )
        return replace(examples, reference=self._cut_anew(drawn.reference, max_steps))

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """(B, T) int64, how the expert would go on at every state, in the student's tokens.

        Where its next token is a part of a character it is asked on until there is text; the end
        of the text where none comes. A state inside a character is read up to there. At padding
        PAD.
        """
        states, written = trajectories.mask.nonzero().tolist(), trajectories.actions.tolist()
        texts = self.student_pieces.texts(written[row][:step] for row, step in states)
        read: list[tuple[str, list[int]]] = []  # whole characters, and the pieces after them
        whole = 0
        for (row, step), text in zip(states, texts, strict=True):
            if step == 0 or not text.endswith(NO_TEXT):
                read.append((text, []))
                whole = step
            else:
                read.append((read[-1][0], written[row][whole:step]))
        source = self._own_source(trajectories.expert_view)
        rows = [row for row, _ in states]
        answers = self._continuations(source, rows, [text for text, _ in read])
        labels = torch.full(trajectories.actions.shape, self.special.pad)
        for state, (text, begun), more in zip(states, read, answers, strict=True):
            piece = self.student_pieces.next(text, begun, more) if more else self.special.end
            labels[*state] = piece
        return labels.to(trajectories.actions.device)

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
            "the teacher must have the student's tokenizer to give its distribution or to go along "
            "while a text is written; with another it gives texts (seqkd, seqinter) and its most "
            "probable token (imitkd)"
        )

    def _continuations(
        self, source: Tensor, rows: Sequence[int], texts: Sequence[str]
    ) -> list[str]:
        """How the expert would go on after each text, "" where it would end.

        Args:
            source: (B, E) int64, in its own tokens.
            rows: which source each text is for.
            texts: what was written.
        """
        tokenizer, answers = self.pieces.tokenizer, [""] * len(texts)
        read = tokenizer.encode_targets(texts)
        known = self.pieces.texts(read)  # as the expert's tokens have it
        asked: dict[int, Asked] = {
            number: (row, tuple(tokens))
            for number, (row, tokens) in enumerate(zip(rows, read, strict=True))
            if len(tokens) < self.max_steps
        }
        for _ in range(MOST_PIECES):
            best = self._best(set(asked.values()), source)
            asked = {
                number: (row, (*tokens, best[row, tokens]))
                for number, (row, tokens) in asked.items()
                if best[row, tokens] != tokenizer.special.end
            }
            longer = self.pieces.texts(tokens for _, tokens in asked.values())
            for number, text in zip(list(asked), longer, strict=True):
                begun = texts[number] if text.startswith(texts[number]) else known[number]
                if is_text(more := text[len(begun) :]):
                    answers[number] = more
                    del asked[number]
        return answers

    def _best(self, states: set[Asked], source: Tensor) -> dict[Asked, int]:
        """The expert's most probable token at each state; those along one text share a pass."""
        texts: list[tuple[int, tuple[int, ...], list[int]]] = []
        for row, tokens in sorted(states, reverse=True):  # a text before those that it begins with
            if not texts or (row, tokens) != (texts[-1][0], texts[-1][1][: len(tokens)]):
                texts.append((row, tokens, []))
            texts[-1][2].append(len(tokens))
        best: dict[Asked, int] = {}
        for begin in range(0, len(texts), len(source)):
            part = texts[begin : begin + len(source)]
            answers = self.expert.best_actions(self._asked(part, source)).tolist()
            for (row, tokens, places), answer in zip(part, answers, strict=True):
                best |= {(row, tokens[:place]): answer[place] for place in places}
        return best

    def _asked(
        self, texts: Sequence[tuple[int, tuple[int, ...], list[int]]], source: Tensor
    ) -> Trajectories:
        """Texts of its tokens, each with the row of its source and the places that count."""
        longest = max(len(tokens) for _, tokens, _ in texts) + 1
        actions = torch.full((len(texts), longest), self.pieces.tokenizer.special.pad)
        mask = torch.zeros_like(actions, dtype=torch.bool)
        for number, (_, tokens, places) in enumerate(texts):
            actions[number, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[number, places] = True
        return Trajectories(
            source=source[[row for row, _, _ in texts]],
            actions=actions,
            writer=torch.full_like(actions, Writer.STUDENT),
            mask=mask,
            reference=actions[:, :0],  # in the student's tokens alone
        ).to(source.device)

    def _own(self, examples: Examples) -> Examples:
        """The examples as the expert reads them."""
        return Examples(self._own_source(examples.expert_view), examples.reference)

    def _own_source(self, view: Tensor) -> Tensor:
        """(N, E) int64 in its own tokens, of what `view` made."""
        pad, own = self.special.pad, self.pieces.tokenizer.special.pad
        return (view - (view > pad).long()).masked_fill(view == pad, own)

    def _cut_anew(self, written: Tensor, max_steps: int) -> Tensor:
        """(N, T) int64, the texts of (N, ...) tokens of the expert's in the student's."""
        pad, _, end = self.special
        texts = self.pieces.tokenizer.decode(written.tolist())
        rows = self.student_pieces.tokenizer.encode_targets(texts)
        ended = [torch.tensor([*row, end][:max_steps]) for row in rows]
        tokens = pad_sequence(ended, batch_first=True, padding_value=pad).to(written.device)
        nothing = (written == self.pieces.tokenizer.special.pad).all(1, keepdim=True)
        return tokens.masked_fill(nothing, pad)
