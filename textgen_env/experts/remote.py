"""A teacher behind HTTP as the expert: a server that tells the log-probabilities of prompts.

A whole rollout is labelled by few requests: a row's prompt is the source and what was written after
it, and the server, vLLM or one that speaks its protocol, says at each position which k tokens it
holds for most probable. What it answered is kept on disk and never asked for again. It tells no
whole distribution and cannot be stepped: agents that need these cannot have it as a teacher.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textgen_env.dynamics import State
from textgen_env.experts.completions_client import CompletionsClient
from textgen_env.experts.expert import Expert, ExpertError, TopK
from textgen_env.experts.label_cache import LabelCache
from textgen_env.generation.decoding import Sampling
from textgen_env.models.sequence_model import AnyCache
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import Examples, Trajectories

NOTHING_LEFT = 1e-7  # what float32 probabilities that sum to 1 cannot tell from 0
BANNED = -100  # the lowest logit bias
IDS, LOG_PROBS = np.dtype("<i4"), np.dtype("<f4")

Prompt = Sequence[int]


class RemoteExpert(Expert):
    """Asks a server for labels and for texts.

    States and tokens count as asked whether the server or the cache answers, so that runs compare;
    `server.requests` counts what was sent.

    Args:
        server: where the teacher is.
        tokenizer: its own.
        cache: what it answered before.
        k: most probable tokens asked for at each state.
        batch_size: prompts a request.
        prompt_prefix: tokens before every prompt, such as the start token of a model that was
            trained with one.

    Raises:
        ValueError: `k` above V.
    """

    def __init__(
        self,
        server: CompletionsClient,
        tokenizer: TextTokenizer,
        cache: LabelCache,
        *,
        k: int,
        batch_size: int = 64,
        prompt_prefix: Sequence[int] = (),
    ) -> None:
        super().__init__(tokenizer.special)
        if k > tokenizer.vocab_size:
            raise ValueError(
                f"k must be at most {tokenizer.vocab_size}, the size of the vocabulary, got {k}"
            )
        self.server, self.tokenizer, self.cache = server, tokenizer, cache
        self.k, self.batch_size = k, batch_size
        self.prompt_prefix = list(prompt_prefix)
        pieces = json.dumps(dict(tokenizer.pieces), sort_keys=True)
        self._known_as = [server.model, blake2b(pieces.encode(), digest_size=16).hexdigest()]

    @property
    def vocab_size(self) -> int:
        """V of its tokens."""
        return self.tokenizer.vocab_size

    @property
    def largest_k(self) -> int:
        """The k up to which `top_k` answers."""
        return self.k

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Never answers."""
        raise self._too_much("the whole distribution")

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Never answers."""
        raise self._too_much("an answer at every step while a text is written")

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Never answers."""
        raise self._too_much("an answer at every step while a text is written")

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """(B, T) int64, the most probable token that may be written, at every state."""
        tokens, _ = self._labels(trajectories)
        allowed = (tokens != self.special.pad) & (tokens != self.special.start)
        return tokens.gather(-1, allowed.long().argmax(-1, keepdim=True)).squeeze(-1)

    def top_k(self, trajectories: Trajectories, k: int) -> TopK:
        """The `k` most probable next tokens, and what they leave to 1 as the tail.

        A tail too small for the server's digits is taken as 1e-7.

        Raises:
            ExpertError: `k` above what the server is asked for.
            ValueError: `k` below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if k > self.k:
            raise self._too_much(f"the {k} most probable tokens")
        tokens, log_probs = self._labels(trajectories)
        held = log_probs[..., :k].double().exp().sum(-1)
        tail = (1 - held).clamp(min=NOTHING_LEFT).log().float()
        if k == self.vocab_size:
            tail = torch.full_like(tail, float("-inf"))
        return TopK(tokens[..., :k], log_probs[..., :k], tail)

    def complete(
        self,
        source: Tensor,
        prefix: Tensor,
        length: Tensor,
        *,
        sampling: Sampling | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The beginnings of texts, and how the server goes on; what it writes counts as asked."""
        start, steps = time.perf_counter(), prefix.shape[1]
        kept = [row[:n] for row, n in zip(prefix.tolist(), length.tolist(), strict=True)]
        open_rows = [
            row
            for row, text in enumerate(kept)
            if len(text) < steps and self.special.end not in text
        ]
        prompts = self._prompts(source)
        asked = [[*prompts[row], *kept[row]] for row in open_rows]
        written = self._texts(asked, steps, self._sampling_params(sampling, generator))
        for row, (text,) in zip(open_rows, written, strict=True):
            kept[row] = [*kept[row], *text][:steps]
        completed = self._padded(kept, steps).to(source.device)
        self.count((completed != self.special.pad).sum(), start)
        return completed

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """What the server's beam search, or with one beam greedy decoding, holds for best.

        `beam_size` states are counted for every token. A server that knows no beam search and says
        nothing of it writes greedily.
        """
        start = time.perf_counter()
        best = self._beams(examples, max_steps, beam_size)[:, 0]
        self.count(beam_size * (best != self.special.pad).sum(), start)
        return replace(examples, reference=best)

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """All that the server's beam search gives; a state is counted for every token of each."""
        start = time.perf_counter()
        texts = self._beams(examples, max_steps, beam_size)
        self.count((texts != self.special.pad).sum(), start)
        return texts

    def _beams(self, examples: Examples, max_steps: int, beam_size: int) -> Tensor:
        """(N, C, T) int64."""
        sampling_params = self._sampling_params(None, None)
        if beam_size > 1:
            sampling_params |= {"n": beam_size, "use_beam_search": True}
        written = self._texts(self._prompts(examples.expert_source), max_steps, sampling_params)
        texts = torch.stack([self._padded(row, max_steps) for row in written])
        return texts.to(examples.source.device)

    def _labels(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, K) int64 and log-probabilities (B, T, K) float32; at padding any."""
        start, width = time.perf_counter(), trajectories.actions.shape[1]
        position = torch.arange(1, width + 1, device=trajectories.mask.device)
        steps = (position * trajectories.mask).amax(1).tolist()
        written = [row[:n] for row, n in zip(trajectories.actions.tolist(), steps, strict=True)]
        prompts = self._prompts(trajectories.expert_source)
        firsts = [len(prompt) for prompt in prompts]
        asked = [[*prompt, *text] for prompt, text in zip(prompts, written, strict=True)]
        tokens = torch.arange(self.k).repeat(len(asked), width, 1)
        log_probs = torch.full(tokens.shape, -np.log(self.k + 1), dtype=torch.float32)
        for row, answer in enumerate(self._ask_labels(asked, firsts)):
            half = len(answer) // 2
            shape = steps[row], self.k
            tokens[row, : shape[0]] = _numbers(answer[:half], IDS, shape).long()
            log_probs[row, : shape[0]] = _numbers(answer[half:], LOG_PROBS, shape)
        self.count(trajectories.mask.sum(), start)
        device = trajectories.actions.device
        return tokens.to(device), log_probs.to(device)

    def _ask_labels(self, asked: list[list[int]], firsts: list[int]) -> list[bytes]:
        """Of each row the tokens, then the log-probabilities, at the positions from the first."""
        # What stands last decides nothing: it is sent because the server speaks of its position.
        keys = [
            self._key(["labels", self.k, first], row[:-1])
            for row, first in zip(asked, firsts, strict=True)
        ]
        parameters = {"prompt_logprobs": self.k, "max_tokens": 1, "temperature": 0}

        def ask(rows: list[int]) -> list[bytes]:
            choices = self.server.ask([asked[row] for row in rows], parameters)
            return [
                self._told(choice, asked[row], firsts[row])
                for row, (choice,) in zip(rows, choices, strict=True)
            ]

        return self._answers(keys, ask)

    def _told(self, choice: Mapping[str, Any], prompt: Prompt, first: int) -> bytes:
        tokens, log_probs = self.server.best_tokens(
            choice, prompt, first, k=self.k, vocab_size=self.vocab_size
        )
        return np.array(tokens, IDS).tobytes() + np.array(log_probs, LOG_PROBS).tobytes()

    def _texts(
        self, prompts: Sequence[Prompt], max_steps: int, sampling_params: Mapping[str, Any]
    ) -> list[list[list[int]]]:
        """What the server writes after each prompt: n texts, with their end tokens."""
        parameters = {**sampling_params, "max_tokens": max_steps, "return_token_ids": True}
        keys = [self._key(["texts", parameters], prompt) for prompt in prompts]

        def ask(rows: list[int]) -> list[bytes]:
            answers = self.server.ask([prompts[row] for row in rows], parameters)
            return [
                json.dumps(
                    [self.server.text(choice, self.tokenizer) for choice in choices]
                ).encode()
                for choices in answers
            ]

        written = [json.loads(answer) for answer in self._answers(keys, ask)]
        return [[text[:max_steps] for text in texts] for texts in written]

    def _answers(
        self, keys: Sequence[bytes], ask: Callable[[list[int]], list[bytes]]
    ) -> list[bytes]:
        """Of each key its answer: from the cache, or from the server, by number of its row."""
        known = self.cache.get(keys)
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        rows = list(missing.values())
        for begin in range(0, len(rows), self.batch_size):
            part = rows[begin : begin + self.batch_size]
            fresh = {keys[row]: answer for row, answer in zip(part, ask(part), strict=True)}
            self.cache.put(fresh)
            known |= fresh
        return [known[key] for key in keys]

    def _key(self, question: list[object], prompt: Prompt) -> bytes:
        """Of everything that an answer depends on."""
        asked = json.dumps([*self._known_as, *question, list(prompt)], sort_keys=True)
        return blake2b(asked.encode(), digest_size=32).digest()

    def _prompts(self, source: Tensor) -> list[list[int]]:
        """The tokens that the server reads before what is written, of (B, E) sources.

        The end token is left out, for the text goes on; it stays where there is nothing else.
        """
        unread = self.special.pad, self.special.end
        return [
            [*self.prompt_prefix, *(token for token in row if token not in unread)]
            or [self.special.end]
            for row in source.tolist()
        ]

    def _sampling_params(
        self, sampling: Sampling | None, generator: torch.Generator | None
    ) -> dict[str, Any]:
        """A request's parameters for how to draw; padding and start are never written."""
        banned = {self.special.pad, self.special.start} - {self.special.end}
        known = sorted(banned.intersection(self.tokenizer.pieces.values()))  # none is made up
        sampling_params: dict[str, Any] = {"logit_bias": {str(token): BANNED for token in known}}
        if sampling is None:
            return sampling_params | {"temperature": 0}
        if generator is None:
            raise ValueError("generator must be a torch.Generator when sampling, got None")
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        cuts = {"top_k": sampling.top_k, "top_p": sampling.top_p}
        cuts = {name: cut for name, cut in cuts.items() if cut is not None}
        return sampling_params | {"temperature": sampling.temperature, "seed": int(seed), **cuts}

    def _padded(self, texts: Sequence[Sequence[int]], width: int) -> Tensor:
        """(B, width) int64 on the CPU."""
        padded = torch.full((len(texts), width), self.special.pad)
        for row, text in zip(padded, texts, strict=True):
            row[: len(text)] = torch.tensor(text, dtype=torch.long)
        return padded

    def _too_much(self, wanted: str) -> ExpertError:
        return ExpertError(
            f"a remote teacher must be asked for texts or for its {self.k} most probable tokens at "
            f"each state, got a wish for {wanted}: choose an agent or a label that needs no more "
            "(imitkd, seqkd), or a teacher on this machine"
        )


def _numbers(data: bytes, kind: np.dtype, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, kind).reshape(shape).copy())
