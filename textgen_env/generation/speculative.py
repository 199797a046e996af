"""Speculative decoding: a draft proposes tokens, and the target reads several in one pass.

The texts have the law of the target alone, whatever the draft is; a better draft only makes them
faster. Rows of a batch keep different numbers of tokens: each has a length of its own, and both
caches go back row by row (`RewindableCache`). Greedy texts are the target's up to the rounding of
its logits, which may be another for several tokens than for one. Left out: trees of proposals, and
CUDA graphs, for which a step's cache cannot be gone back to.

Source: Leviathan et al. 2023, algorithm 1, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_env.bounds import check_at_least
from textgen_env.generation.decoding import (
    action_probs,
    best_actions,
    check_decoding,
    check_unseen_logits,
    logits_from,
    rows_to_keep,
)
from textgen_env.generation.sampling import Sampling, sample_tokens
from textgen_env.models.sequence_model import (
    AnyCache,
    BlockModel,
    RewindableCache,
    SequenceModel,
)
from textgen_env.types import SpecialTokens

DRAFT_TOKENS = 3  # that a draft proposes at a time, unless told otherwise


@dataclass(frozen=True)
class DraftCounts:
    """Counts of speculative decoding, summed over sources.

    Attributes:
        passes: blocks that the target has read.
        tokens: tokens of the texts, end tokens included.
        verified: drafted tokens that the target has accepted or refused; those after a refused one,
            or after the end of a text, are not verified.
        accepted: drafted tokens that it has accepted.
    """

    passes: int = 0
    tokens: int = 0
    verified: int = 0
    accepted: int = 0

    def __add__(self, other: "DraftCounts") -> "DraftCounts":
        """Return the counts of both together."""
        return DraftCounts(
            self.passes + other.passes,
            self.tokens + other.tokens,
            self.verified + other.verified,
            self.accepted + other.accepted,
        )

    @property
    def acceptance(self) -> float:
        """Share of verified tokens that are accepted; its mean is that of 1 - TVD(p, q)."""
        return self.accepted / self.verified

    @property
    def tokens_per_pass(self) -> float:
        """Tokens for each block that the target reads, from 1 to G + 1."""
        return self.tokens / self.passes


@dataclass
class SpeculativeDecoder:
    """Decoder that writes the target's texts with the help of a draft.

    It is called with the target, as any `Decoder` is.

    Attributes:
        draft: a smaller model with the target's tokens, in evaluation mode.
        draft_tokens: G, the tokens that it proposes at a time, at least 1.
        sampling: distribution to sample from; None for the target's greedy texts.
        generator: source of randomness; needed for sampling alone.
        counts: of all calls so far.

    Raises:
        ValueError: `draft_tokens` below 1, or `sampling` without a generator.
    """

    draft: SequenceModel
    draft_tokens: int = DRAFT_TOKENS
    sampling: Sampling | None = None
    generator: torch.Generator | None = None
    counts: DraftCounts = field(default_factory=DraftCounts, init=False)

    def __post_init__(self) -> None:
        check_at_least(self, draft_tokens=1)
        if self.sampling is not None and self.generator is None:
            raise ValueError("generator must be a torch.Generator when sampling, got None")

    def __call__(self, model: SequenceModel, source: Tensor, max_steps: int) -> Tensor:
        """Decode a batch; room for `max_steps` + G tokens is taken in both models.

        Args:
            model: the target, in evaluation mode.
            source: (B, S) int64, PAD after each row's end token.
            max_steps: T, at least 1.

        Returns:
            (B, T) int64 as `greedy`, or as `sample`.

        Raises:
            ValueError: the models have other tokens, or one of them cannot do what is needed.
        """
        check_decoding(source, max_steps)
        target = check_target(model, self.draft)
        if not len(source):
            return source.new_empty(0, max_steps)
        count, limit = self.draft_tokens, max_steps + self.draft_tokens
        verifier = Verifier(target.special, self.sampling, self.generator)
        with torch.inference_mode():
            drafting = _Drafting(self.draft, count, [self.draft.start(source, limit)])
            writing = _Writing.begin(source, max_steps, count + 1, target.special)
            _decode_blocks(target, drafting, target.start(source, limit), writing, verifier)
        self.counts += DraftCounts(*writing.counts.tolist())
        texts = writing.texts[:, :max_steps]
        return texts.clone()  # a tensor made in inference mode cannot be used in training


def check_target(target: SequenceModel, draft: SequenceModel) -> BlockModel:
    """Return the target, if the draft can write for it.

    Raises:
        ValueError: the models have other tokens, or the target cannot read several at once.
    """
    own, other = ((each.vocab_size, tuple(each.special)) for each in (target, draft))
    if own != other:
        raise ValueError(
            "draft must have the target's vocabulary size and special tokens, "
            f"{own[0]} and {own[1]}, got {other[0]} and {other[1]}: take a draft with its tokenizer"
        )
    if not isinstance(target, BlockModel):
        raise ValueError(
            "target must read several tokens in one pass (step_block), got a "
            f"{type(target).__name__}: decode it without a draft"
        )
    return target


@dataclass(frozen=True)
class Proposal:
    """Tokens that a draft proposes for R rows.

    Attributes:
        tokens: (R, G) int64.
        probs: (R, G, V) float32, with which each was drawn; None for the most probable ones.
    """

    tokens: Tensor
    probs: Tensor | None


@dataclass(frozen=True)
class Verifier:
    """Rule by which tokens are drafted, and by which the target accepts them.

    Attributes:
        special: special tokens of both models.
        sampling: distribution to sample from; None for the most probable tokens.
        generator: source of randomness, if there is a distribution.
    """

    special: SpecialTokens
    sampling: Sampling | None
    generator: torch.Generator | None

    def probs(self, logits: Tensor) -> Tensor | None:
        """Return what tokens are drawn with, (R, K, V) for as many logits; None if none are."""
        if self.sampling is None:
            return None
        flat = action_probs(logits.flatten(0, 1), self.sampling, self.special)
        return flat.unflatten(0, logits.shape[:2])

    def propose(self, logits: Tensor) -> Proposal:
        """Return the draft's next token of each row, for its logits (R, 1, V)."""
        probs = self.probs(logits)
        if probs is None:
            return Proposal(best_actions(logits, self.special), None)
        return Proposal(self._draw(probs.squeeze(1))[:, None], probs)

    def verify(self, proposal: Proposal, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Verify proposed tokens by the target's logits.

        Token x is accepted with probability min(1, p(x) / q(x)), where p is the target's
        distribution and q the draft's. In place of the first one that is refused a token is drawn
        from the positive part of p - q, and after G accepted ones a further one from p.

        Args:
            proposal: of the draft.
            logits: (R, G + 1, V), before each of the tokens and after the last.

        Returns:
            (R, G + 1) int64 tokens, the accepted ones and the target's own after them, whatever
            stands beyond; and (R,) int64, the number of accepted ones.
        """
        probs = self.probs(logits)
        if proposal.probs is None or probs is None:
            best = best_actions(logits, self.special)
            return best, _leading(best[:, :-1] == proposal.tokens)
        at = proposal.tokens[..., None]
        draws = self._uniform(at.shape).to(at.device)
        accepts = draws * proposal.probs.gather(-1, at) < probs[:, :-1].gather(-1, at)
        accepted = _leading(accepts.squeeze(-1))
        rows = torch.arange(len(accepted), device=accepted.device)
        own = probs[rows, accepted]
        # After the last proposal nothing is taken from p.
        taken = F.pad(proposal.probs, (0, 0, 0, 1))[rows, accepted]
        rest = (own - taken).clamp(min=0)
        # Where both are equal up to rounding nothing may be left.
        rest = rest.where(rest.sum(-1, keepdim=True) > 0, own)
        tokens = F.pad(proposal.tokens, (0, 1), value=self.special.pad)
        return tokens.scatter(1, accepted[:, None], self._draw(rest)[:, None]), accepted

    def _draw(self, probs: Tensor) -> Tensor:
        """Return a token of each row, (R,) int64, for unnormalized probabilities, (R, V)."""
        assert self.generator is not None, "checked with the sampling"
        return sample_tokens(probs, None, self.generator)[0]

    def _uniform(self, shape: torch.Size) -> Tensor:
        assert self.generator is not None, "checked with the sampling"
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


def _leading(accepts: Tensor) -> Tensor:
    """Return how many entries of each row are True before the first that is not, (R,) int64."""
    return accepts.long().cumprod(1).sum(1)


@dataclass
class _Drafting:
    """The draft's cache of R rows, and those since the last tokens that were kept.

    Attributes:
        model: the draft.
        count: G.
        history: caches before and after each step.
    """

    model: SequenceModel
    count: int
    history: list[AnyCache]

    def propose(self, last: Tensor, verifier: Verifier) -> Proposal:
        """Return G tokens after the `last` ones, (R,) int64."""
        proposals, previous = [], last
        for _ in range(self.count):
            with logits_from("draft"):
                proposals.append(verifier.propose(self._read(previous)[:, None]))
            previous = proposals[-1].tokens.squeeze(1)
        probs = [each.probs for each in proposals if each.probs is not None]
        tokens = torch.cat([each.tokens for each in proposals], 1)
        return Proposal(tokens, torch.cat(probs, 1) if probs else None)

    def keep(self, proposal: Proposal, kept: Tensor) -> None:
        """Go back to the cache after `kept` tokens of each row, (R,) int64 up to G + 1."""
        if int(kept.max()) == len(self.history):  # the last proposal is still to be read
            self._read(proposal.tokens[:, -1])
        self.history = [_rewound(self.history, kept)]

    def select_rows(self, index: Tensor) -> None:
        """Leave only the rows at `index`, (J,) int64, after `keep`."""
        (cache,) = self.history
        self.history = [cache.select_rows(index)]

    def _read(self, tokens: Tensor) -> Tensor:
        """Return the logits after `tokens`, (R, V)."""
        logits, cache = self.model.step(tokens, self.history[-1])
        self.history.append(cache)
        return logits


def _rewound(history: Sequence[AnyCache], kept: Tensor) -> AnyCache:
    """Return the cache after `kept` of the steps in `history`, (R,) int64.

    Raises:
        ValueError: the model's cache cannot go back.
    """
    cache = history[-1]
    if not isinstance(cache, RewindableCache):
        raise ValueError(
            "draft and target must have caches that go back (rewind), got a "
            f"{type(cache).__name__}: decode without a draft"
        )
    return cache.rewind(history, kept)


@dataclass
class _Writing:
    """Texts as they are written, K rows of B at a time: those that are not dropped yet.

    Attributes:
        texts: (B, ...) int64, with room for a block beyond the last step.
        max_steps: T.
        special: special tokens.
        rows: (K,) int64, their places among the B.
        length: (K,) int64, tokens of each.
        last: (K,) int64, the last one of each; the start token before the first.
        done: (K,) bool, True for those that are over.
        counts: (4,) int64, the fields of `DraftCounts`.
    """

    texts: Tensor
    max_steps: int
    special: SpecialTokens
    rows: Tensor
    length: Tensor
    last: Tensor
    done: Tensor
    counts: Tensor

    @classmethod
    def begin(cls, source: Tensor, max_steps: int, room: int, special: SpecialTokens) -> "_Writing":
        """Return empty texts for (B, S) sources, with `room` further columns."""
        rows = torch.arange(len(source), device=source.device)
        return cls(
            texts=source.new_full((len(source), max_steps + room), special.pad),
            max_steps=max_steps,
            special=special,
            rows=rows,
            length=torch.zeros_like(rows),
            last=torch.full_like(rows, special.start),
            done=torch.zeros_like(rows, dtype=torch.bool),
            counts=rows.new_zeros(len(fields(DraftCounts))),
        )

    def add(self, tokens: Tensor, accepted: Tensor) -> Tensor:
        """Write accepted tokens and the target's own, up to the end of each text.

        Args:
            tokens: (K, G + 1) int64.
            accepted: (K,) int64, how many of them are the draft's.

        Returns:
            (K,) int64, how many tokens are kept of each text that goes on; 0 of the others.
        """
        place = torch.arange(tokens.shape[1], device=tokens.device)
        ends = (tokens == self.special.end).long()
        over = (ends.cumsum(1) > ends) | (place > accepted[:, None]) | self.done[:, None]
        over |= self.length[:, None] + place >= self.max_steps
        kept = (~over).sum(1)
        columns = self.length[:, None] + place
        self.texts[self.rows[:, None], columns] = tokens.masked_fill(over, self.special.pad)
        verified = torch.minimum(kept, accepted + 1).clamp(max=tokens.shape[1] - 1)
        per_row = (~self.done, kept, verified, torch.minimum(kept, accepted))
        self.counts += torch.stack([each.sum() for each in per_row])
        self.length = self.length + kept
        self.last = tokens.gather(1, (kept - 1).clamp(min=0)[:, None]).squeeze(1)
        ended = (self.last == self.special.end) | (self.length == self.max_steps)
        self.done = self.done | ended
        return kept.masked_fill(self.done, 0)

    def select_rows(self, index: Tensor) -> None:
        """Leave only the rows at `index`, (J,) int64, in the batch."""
        self.rows, self.length = self.rows[index], self.length[index]
        self.last, self.done = self.last[index], self.done[index]


def _decode_blocks(
    target: BlockModel,
    drafting: _Drafting,
    cache: AnyCache,
    writing: _Writing,
    verifier: Verifier,
) -> None:
    """Write all texts to their end, a block of each row at a time."""
    while True:
        proposal = drafting.propose(writing.last, verifier)
        block = torch.cat([writing.last[:, None], proposal.tokens], 1)
        logits, after = target.step_block(block, cache)
        with logits_from("target"):
            check_unseen_logits(logits)
            kept = writing.add(*verifier.verify(proposal, logits))
        left = rows_to_keep(writing.done)
        if left is not None and not len(left):
            return
        # A row that is over stays where it is, and so within the room that was taken.
        cache = _rewound([cache, *after], kept)
        drafting.keep(proposal, kept)
        if left is not None:
            cache = cache.select_rows(left)
            drafting.select_rows(left)
            writing.select_rows(left)
