"""A server that speaks OpenAI's completions protocol as vLLM does: its requests and its answers.

Prompts are lists of token ids, many in a request. Time-outs, cut connections, 429 and 5xx are tried
again, with growing pauses or when the server says; other errors are not. An answer that is not what
the protocol promises is an error, never a guess. Streaming and chats are left out.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from textgen_env.experts.expert import ExpertError
from textgen_env.tokenizers.subword import TextTokenizer

API_KEY = "TEXTGEN_API_KEY"  # environment variable; a name of its own, for any server may be named
TRIED_AGAIN = (429, 500, 502, 503, 504)
PAUSE = 0.5  # seconds; before tries 2, 3, 4, ... the pauses are 0, 2 and 4 times this, ...
LONGEST_PAUSE = 60.0  # seconds
LONGEST_WISH = 600  # seconds of a pause that the server may ask for
CONNECT = 10.0  # seconds in which a server that is there takes a connection
ROUNDING = 1e-3  # by which log-probabilities may exceed 0, and probabilities sum to more than 1
SHOWN = 200  # characters of a server's message that an error repeats

Choice = Mapping[str, Any]


class CompletionsClient:
    """One model of one server.

    Args:
        url: up to "/v1".
        model: its name there.
        timeout: seconds without a sign of the server's before a try is given up.
        retries: tries after the first.

    Attributes:
        requests: how often the server was asked, tries not counted.

    Raises:
        ExpertError: what is in the environment variable TEXTGEN_API_KEY cannot be sent.
    """

    def __init__(self, url: str, model: str, *, timeout: float, retries: int) -> None:
        self.url, self.model, self.requests = f"{url.rstrip('/')}/completions", model, 0
        self._timeout, self._key = timeout, os.environ.get(API_KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ExpertError(f"{API_KEY} must be printable ASCII, got something else (not shown)")
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=min(CONNECT, timeout), read=timeout),
            retries=patience(retries),
        )

    def ask(
        self, prompts: Sequence[Sequence[int]], parameters: Mapping[str, Any]
    ) -> list[list[Choice]]:
        """What the server says to each prompt: as many choices as the parameter n, by default 1.

        Raises:
            ExpertError: it cannot be reached, refuses, or answers something else.
        """
        body = {"model": self.model, "prompt": prompts, **parameters}
        answer = self._parsed(self._sent(body))
        if answer.get("model") != self.model:
            raise self._malformed(f'be of the model "{self.model}"', answer.get("model"))
        choices, each = answer.get("choices"), parameters.get("n", 1)
        count = len(prompts) * each
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise self._malformed("hold a list of choices", choices)
        indices = [choice.get("index") for choice in choices]
        if set(indices) != set(range(count)) or len(indices) != count:
            raise self._malformed(f"hold {count} choices, numbered from 0", indices)
        ordered = sorted(choices, key=lambda choice: choice["index"])
        return [ordered[start : start + each] for start in range(0, count, each)]

    def best_tokens(
        self, choice: Choice, prompt: Sequence[int], first: int, *, k: int, vocab_size: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """The k most probable tokens at each position of a prompt from `first` on, the best first.

        Args:
            choice: with prompt_logprobs.
            prompt: what was sent.
            first: at least 1: the server says nothing of a text's first token.
            k: how many were asked for.
            vocab_size: V, what ids must be below.

        Returns:
            Their ids and their log-probabilities, nats, a list of k for each position.

        Raises:
            ExpertError: something is missing, or is no log-probability.
        """
        positions = choice.get("prompt_logprobs")
        if not isinstance(positions, list):
            raise self._malformed("hold a list as prompt_logprobs", positions)
        if len(positions) != len(prompt):
            raise self._malformed(
                f"hold prompt_logprobs of {len(prompt)} positions, as the prompt has",
                len(positions),
            )
        tokens, log_probs = [], []
        for position in range(first, len(prompt)):
            best = self._best(positions[position], prompt[position], k, vocab_size)
            tokens.append([token for token, _, _ in best])
            log_probs.append([min(log_prob, 0.0) for _, log_prob, _ in best])
        return tokens, log_probs

    def text(self, choice: Choice, tokenizer: TextTokenizer) -> list[int]:
        """The tokens that were written, the end token last unless the text was cut off.

        The text of a server that tells no token_ids is tokenized again.

        Raises:
            ExpertError: there is no text, or one of tokens that must not be written.
        """
        special, ended = tokenizer.special, choice.get("finish_reason") == "stop"
        if not ended and choice.get("finish_reason") != "length":
            raise self._malformed("say that a text came to a stop or its length", choice)
        tokens, text = choice.get("token_ids"), choice.get("text")
        if tokens is None and isinstance(text, str):
            (tokens,) = tokenizer.encode_targets([text])
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise self._malformed("hold token_ids or a text", tokens)
        own = list(takewhile(lambda token: token != special.end, tokens))
        if not all(0 <= token < tokenizer.vocab_size and token not in special for token in own):
            raise self._malformed(
                f"be written in tokens below {tokenizer.vocab_size}, none of them padding", own
            )
        return [*own, special.end] if ended or len(own) < len(tokens) else own

    def _best(
        self, entries: object, token: int, k: int, vocab_size: int
    ) -> list[tuple[int, float, int | None]]:
        """The k best entries of one position, (id, log-probability, rank); `token` stands there."""
        if not isinstance(entries, dict):
            raise self._malformed("hold an object at every position", entries)
        known = {_id(key): entry for key, entry in entries.items()}
        if not all(-1 < key < vocab_size for key in known) or len(known) < len(entries):
            raise self._malformed(
                f"name tokens by ids from 0 to {vocab_size - 1}, the tokenizer's", list(entries)
            )
        if token not in known:
            raise self._malformed(f"tell of the prompt's own token {token}", list(entries))
        listed = [(key, *self._entry(entry)) for key, entry in known.items()]
        listed.sort(key=lambda entry: (-entry[1], entry[2] or 0))
        best = listed[:k]
        ranks = [rank for _, _, rank in best if rank is not None]
        if len(best) < k or (len(ranks) == k and set(ranks) != set(range(1, k + 1))):
            raise self._malformed(f"hold the {k} best tokens at every position", list(entries))
        if sum(math.exp(log_prob) for _, log_prob, _ in best) > 1 + ROUNDING:
            raise self._malformed(
                "hold probabilities that sum to 1 at most", [log_prob for _, log_prob, _ in best]
            )
        return best

    def _entry(self, entry: object) -> tuple[float, int | None]:
        """Log-probability and rank of one token."""
        told: dict[str, Any] = entry if isinstance(entry, dict) else {}
        log_prob, rank = told.get("logprob", math.nan), told.get("rank")
        if type(log_prob) not in (int, float) or not -math.inf < log_prob <= ROUNDING:
            raise self._malformed("hold log-probabilities, finite and at most 0", entry)
        return float(log_prob), rank if isinstance(rank, int) else None

    def _sent(self, body: Mapping[str, Any]) -> bytes:
        """The server's answer, after as many tries as it takes."""
        self.requests += 1
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            response = self._pool.request(
                "POST", self.url, json=body, headers=headers, redirect=False
            )
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) else error
            raise ExpertError(
                f"the teacher must answer at {self.url} within {self._timeout:g} seconds, got: "
                f"{self._hidden(str(reason))}: see that it runs; the same command then goes on"
            ) from None
        if response.status != 200:
            raise ExpertError(
                f"the teacher must accept the request at {self.url}, got status {response.status}: "
                f"{self._hidden(response.data.decode(errors='replace'))}"
            )
        return response.data

    def _parsed(self, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise self._malformed("be JSON", f"{error} in {data[:SHOWN]!r}") from None
        if not isinstance(answer, dict):
            raise self._malformed("be a JSON object", answer)
        return answer

    def _malformed(self, rule: str, got: object) -> ExpertError:
        return ExpertError(
            f"an answer of {self.url} must {rule}, got {self._hidden(str(got))}: nothing of it was "
            "kept; see that the server is vLLM or speaks its protocol, for this model"
        )

    def _hidden(self, text: str) -> str:
        """`text`, cut, without the key."""
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN]


def patience(retries: int) -> urllib3.Retry:
    """After what a request is sent again, `retries` times at most, and how long that waits."""
    return urllib3.Retry(
        total=retries,
        status_forcelist=TRIED_AGAIN,
        allowed_methods=None,  # POST as well: to ask twice changes nothing
        backoff_factor=PAUSE,
        backoff_max=LONGEST_PAUSE,
        retry_after_max=LONGEST_WISH,
        raise_on_status=False,
    )


def _id(key: str) -> int:
    """A token's id, -1 if it is none."""
    return int(key) if key.isdecimal() and key.isascii() else -1


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON's")
