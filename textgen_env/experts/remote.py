"""Remote expert: a teacher behind HTTP whose server returns log-probabilities of prompts.

A rollout is labeled by few requests: the prompt of a row is the source and the actions, and the
server, vLLM or one with its protocol, returns the k most probable tokens at each position. Answers
are stored on disk and never requested again. The server returns no whole distributions and cannot
be stepped; algorithms that need these cannot use this expert.
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
from textgen_env.experts.completions_client import Completion, CompletionsClient
from textgen_env.experts.expert import Expert, ExpertError
from textgen_env.experts.label_cache import LabelCache
from textgen_env.experts.top_k import TopK
from textgen_env.generation.decoded_rows import note_decoded
from textgen_env.generation.sampling import Sampling
from textgen_env.models.sequence_model import AnyCache
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_env.types import Examples, Trajectories

MIN_TAIL_PROB = 1e-7  # the resolution of a sum of float32 probabilities near 1
BAN_LOGIT_BIAS = -100  # the lowest value that the protocol allows
TOKEN_DTYPE, LOG_PROB_DTYPE = np.dtype("<i4"), np.dtype("<f4")  # of stored answers

Prompt = Sequence[int]


class RemoteExpert(Expert):
    """Expert that requests labels and texts from a server.

    Queries count whether the server or the cache answers them, so that runs can be compared;
    `server.requests` counts the requests sent.

    Args:
        server: client of the teacher's server.
        tokenizer: the teacher's own.
        cache: earlier answers of the teacher.
        k: number of most probable tokens requested at each state.
        batch_size: prompts per request.
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
        self._identity = [server.model, blake2b(pieces.encode(), digest_size=16).hexdigest()]

    @property
    def vocab_size(self) -> int:
        """V, the size of the vocabulary."""
        return self.tokenizer.vocab_size

    @property
    def largest_k(self) -> int:
        """Largest k that `top_k` answers."""
        return self.k

    def logits(self, trajectories: Trajectories) -> Tensor:
        """Raise `ExpertError`: the server returns no whole distributions."""
        raise self._unsupported("the whole distribution")

    def start(self, source: Tensor, max_steps: int) -> AnyCache:
        """Raise `ExpertError`: the server cannot be stepped."""
        raise self._unsupported("an answer at every step of a rollout")

    def step(self, state: State, previous: Tensor, cache: AnyCache) -> tuple[Tensor, AnyCache]:
        """Raise `ExpertError`: the server cannot be stepped."""
        raise self._unsupported("an answer at every step of a rollout")

    def best_actions(self, trajectories: Trajectories) -> Tensor:
        """Return (B, T) int64, at every state the most probable token but padding and start."""
        tokens, _ = self._labels(trajectories)
        allowed = (tokens != self.special.pad) & (tokens != self.special.start)
        return tokens.gather(-1, allowed.long().argmax(-1, keepdim=True)).squeeze(-1)

    def top_k(self, trajectories: Trajectories, k: int) -> TopK:
        """Return the `k` most probable next tokens at every state, and the tail's probability.

        The tail is 1 minus the sum of the k probabilities, but at least 1e-7.

        Raises:
            ExpertError: `k` above the number of tokens that are requested.
            ValueError: `k` below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if k > self.k:
            raise self._unsupported(f"the {k} most probable tokens")
        tokens, log_probs = self._labels(trajectories)
        top_prob = log_probs[..., :k].double().exp().sum(-1)
        tail = (1 - top_prob).clamp(min=MIN_TAIL_PROB).log().float()
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
        """Complete prefixes by text completion; each token of the result counts as one query."""
        start, steps = time.perf_counter(), prefix.shape[1]
        texts = [row[:n] for row, n in zip(prefix.tolist(), length.tolist(), strict=True)]
        open_rows = [
            row
            for row, text in enumerate(texts)
            if len(text) < steps and self.special.end not in text
        ]
        sources = self._source_prompts(source)
        prompts = [[*sources[row], *texts[row]] for row in open_rows]
        completions = self._generate(prompts, steps, self._sampling_params(sampling, generator))
        for row, (completion,) in zip(open_rows, completions, strict=True):
            texts[row] = [*texts[row], *completion][:steps]
        completed = self._pad(texts, steps).to(source.device)
        self.count((completed != self.special.pad).sum(), start)
        return completed

    def write(self, examples: Examples, *, max_steps: int, beam_size: int) -> Examples:
        """Decode by the server's beam search; each token counts as `beam_size` queries.

        With a beam of one, or on a server that ignores the parameters of beam search, this is
        greedy decoding.
        """
        start = time.perf_counter()
        best = self._beam_search(examples, max_steps, beam_size)[:, 0]
        self.count(beam_size * (best != self.special.pad).sum(), start)
        return replace(examples, reference=best)

    def write_n_best(self, examples: Examples, *, max_steps: int, beam_size: int) -> Tensor:
        """Return all texts of the server's beam search; each token of each counts as one query."""
        start = time.perf_counter()
        texts = self._beam_search(examples, max_steps, beam_size)
        self.count((texts != self.special.pad).sum(), start)
        return texts

    def _beam_search(self, examples: Examples, max_steps: int, beam_size: int) -> Tensor:
        """Return (N, C, T) int64 texts, the best first."""
        sampling_params = self._sampling_params(None, None)
        if beam_size > 1:
            sampling_params |= {"n": beam_size, "use_beam_search": True}
        prompts = self._source_prompts(examples.expert_view)
        texts = self._generate(prompts, max_steps, sampling_params)
        padded = torch.stack([self._pad(row, max_steps) for row in texts])
        return padded.to(examples.source.device)

    def _labels(self, trajectories: Trajectories) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, K) int64 and log-probabilities (B, T, K) float32 at every state.

        Values at padding have no meaning.
        """
        start, width = time.perf_counter(), trajectories.actions.shape[1]
        position = torch.arange(1, width + 1, device=trajectories.mask.device)
        steps = (position * trajectories.mask).amax(1).tolist()
        actions = [row[:n] for row, n in zip(trajectories.actions.tolist(), steps, strict=True)]
        sources = self._source_prompts(trajectories.expert_view)
        firsts = [len(source) for source in sources]
        prompts = [[*source, *text] for source, text in zip(sources, actions, strict=True)]
        tokens = torch.arange(self.k).repeat(len(prompts), width, 1)
        log_probs = torch.full(tokens.shape, -np.log(self.k + 1), dtype=torch.float32)
        for row, answer in enumerate(self._request_labels(prompts, firsts)):
            half = len(answer) // 2
            shape = steps[row], self.k
            tokens[row, : shape[0]] = _from_bytes(answer[:half], TOKEN_DTYPE, shape).long()
            log_probs[row, : shape[0]] = _from_bytes(answer[half:], LOG_PROB_DTYPE, shape)
        self.count(trajectories.mask.sum(), start)
        device = trajectories.actions.device
        return tokens.to(device), log_probs.to(device)

    def _request_labels(self, prompts: list[list[int]], firsts: list[int]) -> list[bytes]:
        """Return the labels of each prompt from its first position on, as bytes.

        An answer holds all tokens, then all log-probabilities.
        """
        # The last token has no influence; it is in the prompt because the server only returns
        # predictions at positions of the prompt.
        keys = [
            self._key(["labels", self.k, first], prompt[:-1])
            for prompt, first in zip(prompts, firsts, strict=True)
        ]
        parameters = {"prompt_logprobs": self.k, "max_tokens": 1, "temperature": 0}

        def request(rows: list[int]) -> list[bytes]:
            completions = self.server.ask([prompts[row] for row in rows], parameters)
            return [
                self._label_bytes(completion, prompts[row], firsts[row])
                for row, (completion,) in zip(rows, completions, strict=True)
            ]

        return self._answers(keys, request)

    def _label_bytes(self, completion: Completion, prompt: Prompt, first: int) -> bytes:
        tokens, log_probs = self.server.prompt_top_k(
            completion, prompt, first, k=self.k, vocab_size=self.vocab_size
        )
        return (
            np.array(tokens, TOKEN_DTYPE).tobytes() + np.array(log_probs, LOG_PROB_DTYPE).tobytes()
        )

    def _generate(
        self, prompts: Sequence[Prompt], max_steps: int, sampling_params: Mapping[str, Any]
    ) -> list[list[list[int]]]:
        """Return the n completions of each prompt, with their end tokens."""
        parameters = {**sampling_params, "max_tokens": max_steps, "return_token_ids": True}
        keys = [self._key(["texts", parameters], prompt) for prompt in prompts]

        def request(rows: list[int]) -> list[bytes]:
            answers = self.server.ask([prompts[row] for row in rows], parameters)
            tokens = self.server.generated_tokens
            return [
                json.dumps([tokens(each, self.tokenizer) for each in completions]).encode()
                for completions in answers
            ]

        answers = [json.loads(answer) for answer in self._answers(keys, request)]
        return [[text[:max_steps] for text in texts] for texts in answers]

    def _answers(
        self, keys: Sequence[bytes], request: Callable[[list[int]], list[bytes]]
    ) -> list[bytes]:
        """Return the answer to each key from the cache, or else by `request` of its row numbers."""
        known = self.cache.get(keys)
        missing = {key: row for row, key in enumerate(keys) if key not in known}
        rows = list(missing.values())
        note_decoded(len(keys) - len(rows))
        for begin in range(0, len(rows), self.batch_size):
            batch = rows[begin : begin + self.batch_size]
            fresh = {keys[row]: answer for row, answer in zip(batch, request(batch), strict=True)}
            self.cache.put(fresh)
            known |= fresh
            note_decoded(len(batch))
        return [known[key] for key in keys]

    def _key(self, query: list[object], prompt: Prompt) -> bytes:
        """Return a digest of everything that an answer depends on."""
        content = json.dumps([*self._identity, *query, list(prompt)], sort_keys=True)
        return blake2b(content.encode(), digest_size=32).digest()

    def _source_prompts(self, source: Tensor) -> list[list[int]]:
        """Return the prompt of each of (B, E) sources, before any actions.

        The end token of a source is left out, because the text continues, and those of messages
        within it stay; a prompt without other tokens is one end token.
        """
        pad, _, end = self.special
        rows = ([token for token in row if token != pad] for row in source.tolist())
        return [
            [*self.prompt_prefix, *(row[:-1] if row[-1:] == [end] else row)] or [end]
            for row in rows
        ]

    def _sampling_params(
        self, sampling: Sampling | None, generator: torch.Generator | None
    ) -> dict[str, Any]:
        """Return a request's parameters of decoding, which ban padding and start."""
        banned = {self.special.pad, self.special.start} - {self.special.end}
        known = sorted(
            banned.intersection(self.tokenizer.pieces.values())
        )  # the server has no made-up token
        sampling_params: dict[str, Any] = {
            "logit_bias": {str(token): BAN_LOGIT_BIAS for token in known}
        }
        if sampling is None:
            return sampling_params | {"temperature": 0}
        if generator is None:
            raise ValueError("generator must be a torch.Generator when sampling, got None")
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        limits = {"top_k": sampling.top_k, "top_p": sampling.top_p}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        return sampling_params | {"temperature": sampling.temperature, "seed": int(seed), **given}

    def _pad(self, texts: Sequence[Sequence[int]], width: int) -> Tensor:
        """Return (B, width) int64 on the CPU, PAD after each text."""
        padded = torch.full((len(texts), width), self.special.pad)
        for row, text in zip(padded, texts, strict=True):
            row[: len(text)] = torch.tensor(text, dtype=torch.long)
        return padded

    def _unsupported(self, query: str) -> ExpertError:
        return ExpertError(
            f"a remote teacher must be queried for texts or for its {self.k} most probable tokens "
            f"at each state, not for {query}: choose an agent or a label that needs no more "
            "(imitkd, seqkd), or a teacher on this machine"
        )


def _from_bytes(data: bytes, dtype: np.dtype, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(shape).copy())
