"""Expert with another tokenizer than the student's: its answers are converted through text.

Texts of the expert are tokenized again with the student's tokenizer. At a state of the student the
expert reads the text of the prefix in its own tokens and continues it; the label is the student's
first token of the continuation. Distributions over the expert's tokens cannot be converted, so that
queries for them raise an error.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textgen_env.dynamics import State
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.queries import Queries
from textgen_env.experts.token_text import INCOMPLETE, TokenText, is_visible
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import AnyCache
from textgen_env.tasks.task import encode_sources
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import Examples, Trajectories, Writer

MAX_TOKENS_PER_CHARACTER = 4  # the bytes of a character in UTF-8

ExpertState = tuple[int, tuple[int, ...]]
"""A state in the expert's tokens: the row of its source, and the prefix."""

QueriedText = tuple[int, tuple[int, ...], list[int]]
"""A text in the expert's tokens: the row of its source, the tokens, and the steps queried."""


class CrossTokenizerExpert(Expert):
    """Expert that converts the texts and best actions of another one to the student's tokens.

    The `expert_source` of examples must come from `view`.

    Args:
        expert: the expert that is queried.
        tokenizer: the expert's.
        student_tokenizer: tokenizer of the answers.
        max_steps: length limit of the expert's texts, in its own tokens.
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
        self.token_text = TokenText(tokenizer)
        self.student_token_text = TokenText(student_tokenizer)

    @property
    def queries(self) -> Queries:
        """Queries that the other expert has answered, in its own tokens."""
        return self.expert.queries

    @property
    def largest_k(self) -> int:
        """Largest k of `top_k`: 0, because only the best action is known."""
        return 0

    def view(self, texts: Sequence[str]) -> Tensor:
        """Return (N, E) int64, the expert's view of source texts, padded with the student's PAD.

        The expert's token ids from the student's PAD on are shifted by one, so that none equals it.
        """
        tokenizer, pad = self.token_text.tokenizer, self.special.pad
        tokens = encode_sources(texts, tokenizer)
        shifted = tokens + (tokens >= pad).long()
        return shifted.masked_fill(tokens == tokenizer.special.pad, pad)

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Return the examples with texts of at most `max_steps` student tokens as references."""
        texts = self.expert.write(
            self._expert_examples(examples), max_steps=self.max_steps, beam_size=beam_size
        )
        return replace(examples, reference=self._retokenize(texts.reference, max_steps))

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """Return (N, C, T) int64, the C best texts of each source in the student's tokens."""
        texts = self.expert.write_n_best(
            self._expert_examples(examples), max_steps=self.max_steps, beam_size=beam_size
        )
        return self._retokenize(texts.flatten(0, 1), max_steps).unflatten(0, texts.shape[:2])

    def sample(
        self, examples: Examples, *, max_steps: int, sampling: Sampling, generator: torch.Generator
    ) -> Examples:
        """Return the examples with samples of at most `max_steps` student tokens as references."""
        texts = self.expert.sample(
            self._expert_examples(examples),
            max_steps=self.max_steps,
            sampling=sampling,
            generator=generator,
        )
        return replace(examples, reference=self._retokenize(texts.reference, max_steps))

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T) int64, the student's next token of the expert's continuation at each state.

        The expert decodes greedily until there is a whole character; the label is the end token if
        it ends before. At a state within a character the expert continues the whole characters
        before it. Labels at padding are PAD.
        """
        states, actions = trajectories.mask.nonzero().tolist(), trajectories.actions.tolist()
        texts = self.student_token_text.decode(actions[row][:step] for row, step in states)
        prefixes: list[tuple[str, list[int]]] = []  # whole characters, and the tokens after them
        whole = 0
        for (row, step), text in zip(states, texts, strict=True):
            if step == 0 or not text.endswith(INCOMPLETE):
                prefixes.append((text, []))
                whole = step
            else:
                prefixes.append((prefixes[-1][0], actions[row][whole:step]))
        source = self._expert_source(trajectories.expert_view)
        rows = [row for row, _ in states]
        continuations = self._continue(source, rows, [text for text, _ in prefixes])
        labels = torch.full(trajectories.actions.shape, self.special.pad)
        for state, prefix, text in zip(states, prefixes, continuations, strict=True):
            next_token = self.student_token_text.next_token
            labels[*state] = next_token(*prefix, text) if text else self.special.end
        return labels.to(trajectories.actions.device)

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Raise `ExpertError`: distributions cannot be converted."""
        self._refuse()

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Raise `ExpertError`: distributions cannot be converted."""
        self._refuse()

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Raise `ExpertError`: distributions cannot be converted."""
        self._refuse()

    def in_own_tokens(self, trajectories: Trajectories) -> Trajectories:
        """Return the same sources and texts in the expert's own tokens.

        Args:
            trajectories: whole texts in the student's tokens, with the view of `view`. The end
                token follows in a row where it does there.
        """
        student, own = self.student_token_text.tokenizer, self.token_text.tokenizer
        rows = own.encode_targets(student.decode(trajectories.actions.tolist()))
        ended = (trajectories.actions == self.special.end).any(1).tolist()
        tokens = [
            torch.tensor([*row, *[own.special.end] * is_over], dtype=torch.long)
            for row, is_over in zip(rows, ended, strict=True)
        ]
        actions = pad_sequence(tokens, batch_first=True, padding_value=own.special.pad)
        examples = Examples(self._expert_source(trajectories.expert_view).cpu(), actions)
        return Trajectories.from_examples(examples, own.special).to(trajectories.source.device)

    def _refuse(self) -> NoReturn:
        raise ExpertError(
            "the teacher must have the student's tokenizer to give distributions or to be queried "
            "at every step; with another it gives texts (seqkd, seqinter) and its most probable "
            "token (imitkd)"
        )

    def _continue(self, source: Tensor, rows: Sequence[int], texts: Sequence[str]) -> list[str]:
        """Return the expert's visible continuation of each text, "" where it ends.

        Args:
            source: (B, E) int64, in the expert's tokens.
            rows: row of the source of each text.
            texts: prefixes, of whole characters.
        """
        tokenizer, continuations = self.token_text.tokenizer, [""] * len(texts)
        encoded = tokenizer.encode_targets(texts)
        decoded = self.token_text.decode(encoded)  # may differ from `texts`, in spaces for example
        open_states: dict[int, ExpertState] = {
            index: (row, tuple(tokens))
            for index, (row, tokens) in enumerate(zip(rows, encoded, strict=True))
            if len(tokens) < self.max_steps
        }
        for _ in range(MAX_TOKENS_PER_CHARACTER):
            best = self._best_tokens(set(open_states.values()), source)
            open_states = {
                index: (row, (*prefix, best[row, prefix]))
                for index, (row, prefix) in open_states.items()
                if best[row, prefix] != tokenizer.special.end
            }
            extended = self.token_text.decode(prefix for _, prefix in open_states.values())
            for index, text in zip(list(open_states), extended, strict=True):
                before = texts[index] if text.startswith(texts[index]) else decoded[index]
                if is_visible(continuation := text[len(before) :]):
                    continuations[index] = continuation
                    del open_states[index]
        return continuations

    def _best_tokens(self, states: set[ExpertState], source: Tensor) -> dict[ExpertState, int]:
        """Return the expert's most probable token at each state.

        States along one text are answered by one row of a pass.
        """
        texts: list[QueriedText] = []
        for row, prefix in sorted(states, reverse=True):  # a text precedes its own prefixes
            if not texts or (row, prefix) != (texts[-1][0], texts[-1][1][: len(prefix)]):
                texts.append((row, prefix, []))
            texts[-1][2].append(len(prefix))
        best: dict[ExpertState, int] = {}
        for begin in range(0, len(texts), len(source)):
            batch = texts[begin : begin + len(source)]
            answers = self.expert.best_actions(self._trajectories(batch, source)).tolist()
            for (row, tokens, steps), answer in zip(batch, answers, strict=True):
                best |= {(row, tokens[:step]): answer[step] for step in steps}
        return best

    def _trajectories(self, texts: Sequence[QueriedText], source: Tensor) -> Trajectories:
        """Return trajectories whose mask is True at the queried steps of `texts`."""
        longest = max(len(tokens) for _, tokens, _ in texts) + 1
        actions = torch.full((len(texts), longest), self.token_text.tokenizer.special.pad)
        mask = torch.zeros_like(actions, dtype=torch.bool)
        for index, (_, tokens, steps) in enumerate(texts):
            actions[index, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[index, steps] = True
        return Trajectories(
            source=source[[row for row, _, _ in texts]],
            actions=actions,
            writer=torch.full_like(actions, Writer.STUDENT),
            mask=mask,
            reference=actions[:, :0],  # references exist in the student's tokens only
        ).to(source.device)

    def _expert_examples(self, examples: Examples) -> Examples:
        """Return the examples with sources in the expert's own tokens."""
        return Examples(self._expert_source(examples.expert_view), examples.reference)

    def _expert_source(self, view: Tensor) -> Tensor:
        """Return (N, E) int64 sources in the expert's own tokens; inverts `view`."""
        pad, expert_pad = self.special.pad, self.token_text.tokenizer.special.pad
        return (view - (view > pad).long()).masked_fill(view == pad, expert_pad)

    def _retokenize(self, tokens: Tensor, max_steps: int) -> Tensor:
        """Return (N, T) int64 student tokens of the texts of (N, L) expert tokens."""
        pad, _, end = self.special
        tokenizer = self.token_text.tokenizer
        texts = tokenizer.decode(tokens.tolist())
        rows = self.student_token_text.tokenizer.encode_targets(texts)
        ended = [torch.tensor([*row, end][:max_steps]) for row in rows]
        padded = pad_sequence(ended, batch_first=True, padding_value=pad).to(tokens.device)
        no_text = (tokens == tokenizer.special.pad).all(1, keepdim=True)
        return padded.masked_fill(no_text, pad)
