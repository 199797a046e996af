"""Client of OpenAI's completions protocol with the extensions of vLLM.

Prompts are lists of token ids, many in a request. Timeouts, broken connections and the statuses 429
and 5xx are retried, with growing pauses or after the pause that the server asks for; other errors
are not. A response that violates the protocol raises an error, and so does one that is larger than
the request can ask for. Streaming and chats are left out.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from urllib3.exceptions import HTTPError, MaxRetryError

from textgen_env.experts.bounded_http import Allowance, OversizeError, bounded_pool
from textgen_env.experts.expert import ExpertError
from textgen_env.experts.redaction import Redaction
from textgen_env.experts.remote_config import API_KEY
from textgen_env.tokenizers.subword import TextTokenizer

MAX_READ = 10_000  # bytes of a broken response that are looked at for an error message
ROUNDING = 1e-3  # how far log-probabilities may exceed 0 and sums of probabilities 1
LOWEST = -3e38  # log-probabilities are stored as float32
MAX_SHOWN = 200  # characters of a response that an error message repeats
MAX_DIGITS = 9  # of a token id
BASE_BYTES, BYTES_PER_TOKEN = 1 << 20, 1024  # largest size of a response; a token has about 70
LOGGERS = ("urllib3.connection", "urllib3.connectionpool", "urllib3.util.retry")

Completion = Mapping[str, Any]
"""One entry of "choices" in a response."""


class CompletionsClient:
    """Client of one model on one server.

    Args:
        url: address of the server, up to "/v1".
        model: name of the model on the server.
        timeout: seconds without data from the server before an attempt fails.
        retries: attempts after the first.

    Attributes:
        requests: number of requests, without their retries.

    Raises:
        ExpertError: the environment variable TEXTGEN_API_KEY holds characters that cannot be sent.
    """

    def __init__(self, url: str, model: str, *, timeout: float, retries: int) -> None:
        self.url, self.model, self.requests = f"{url.rstrip('/')}/completions", model, 0
        self._timeout, self._key = timeout, os.environ.get(API_KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ExpertError(f"{API_KEY} must be printable ASCII; its value is not shown here")
        self._redact = Redaction(self._key, MAX_SHOWN)
        if self._key and self._key in url:
            raise ExpertError(f"url must not hold the key of {API_KEY}; it is not shown here")
        self._allowance = Allowance(timeout)
        self._pool = bounded_pool(self._allowance, retries)
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self._redact_record)

    def ask(
        self, prompts: Sequence[Sequence[int]], parameters: Mapping[str, Any]
    ) -> list[list[Completion]]:
        """Send one request and return the n completions of each prompt.

        Args:
            prompts: token ids.
            parameters: all other parameters of the request, such as n (1 if absent).

        Raises:
            ExpertError: the server cannot be reached, refuses, or violates the protocol.
        """
        body = {"model": self.model, "prompt": prompts, **parameters}
        self._allowance.max_bytes = _max_bytes(prompts, parameters)
        response = self._parse(self._post(body))
        if response.get("model") != self.model:
            raise self._malformed(f'be of the model "{self.model}"', response.get("model"))
        choices, n = response.get("choices"), parameters.get("n", 1)
        count = len(prompts) * n
        if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
            raise self._malformed("hold a list of choices", choices)
        indices = [choice.get("index") for choice in choices]
        if not all(type(index) is int for index in indices) or sorted(indices) != [*range(count)]:
            raise self._malformed(f"hold {count} choices, numbered from 0", indices)
        ordered = sorted(choices, key=lambda choice: choice["index"])
        return [ordered[start : start + n] for start in range(0, count, n)]

    def prompt_top_k(
        self, completion: Completion, prompt: Sequence[int], first: int, *, k: int, vocab_size: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Return the k most probable tokens at each position of a prompt from `first` on.

        Args:
            completion: one with prompt_logprobs.
            prompt: token ids of the request.
            first: at least 1, because the server has no prediction of a prompt's first token.
            k: number of tokens requested at each position.
            vocab_size: V; token ids must be below it.

        Returns:
            Token ids and log-probabilities in nats: a list of k for each position, the best first.

        Raises:
            ExpertError: tokens are missing, or their values are no log-probabilities.
        """
        positions = completion.get("prompt_logprobs")
        if not isinstance(positions, list):
            raise self._malformed("hold a list as prompt_logprobs", positions)
        if len(positions) != len(prompt):
            raise self._malformed(
                f"hold prompt_logprobs of {len(prompt)} positions, as the prompt has",
                len(positions),
            )
        tokens, log_probs = [], []
        for position in range(first, len(prompt)):
            best = self._top_k_entries(positions[position], prompt[position], k, vocab_size)
            tokens.append([token for token, _, _ in best])
            log_probs.append([min(log_prob, 0.0) for _, log_prob, _ in best])
        return tokens, log_probs

    def generated_tokens(self, completion: Completion, tokenizer: TextTokenizer) -> list[int]:
        """Return the tokens of a completion, with the end token unless the text was truncated.

        If the server returns no token_ids, the text is tokenized again.

        Raises:
            ExpertError: the completion has no text, or tokens that a text must not have.
        """
        special, ended = tokenizer.special, completion.get("finish_reason") == "stop"
        if not ended and completion.get("finish_reason") != "length":
            raise self._malformed('have the finish_reason "stop" or "length"', completion)
        tokens, text = completion.get("token_ids"), completion.get("text")
        if tokens is None and isinstance(text, str) and _is_unicode(text):
            tokens = self._tokenized(text, tokenizer)
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise self._malformed("hold token_ids or a text", tokens)
        own = list(takewhile(lambda token: token != special.end, tokens))
        if not all(0 <= token < tokenizer.vocab_size and token not in special for token in own):
            raise self._malformed(
                f"be written in tokens below {tokenizer.vocab_size}, none of them padding", own
            )
        return [*own, special.end] if ended or len(own) < len(tokens) else own

    def _tokenized(self, text: str, tokenizer: TextTokenizer) -> list[int]:
        """Return the tokens of a text that the server wrote."""
        try:
            return tokenizer.encode_targets([text])[0]
        except ValueError:  # of a tokenizer of words alone
            raise self._malformed("hold a text in the tokenizer's words", text) from None

    def _top_k_entries(
        self, entries: object, token: int, k: int, vocab_size: int
    ) -> list[tuple[int, float, int | None]]:
        """Return the k best entries of a position whose prompt has `token`.

        An entry is a token id, its log-probability, and its rank if the server returns ranks.
        """
        if not isinstance(entries, dict):
            raise self._malformed("hold an object at every position", entries)
        by_token = {_token_id(key): entry for key, entry in entries.items()}
        if not all(-1 < key < vocab_size for key in by_token) or len(by_token) < len(entries):
            raise self._malformed(
                f"name tokens by ids from 0 to {vocab_size - 1}, the tokenizer's", list(entries)
            )
        if token not in by_token:
            raise self._malformed(f"hold the prompt's own token {token}", list(entries))
        parsed = [(key, *self._parse_entry(entry)) for key, entry in by_token.items()]
        parsed.sort(key=lambda entry: (-entry[1], entry[2] or 0))
        best = parsed[:k]
        ranks = [rank for _, _, rank in best if rank is not None]
        if len(best) < k or (len(ranks) == k and set(ranks) != set(range(1, k + 1))):
            raise self._malformed(f"hold the {k} best tokens at every position", list(entries))
        if sum(math.exp(log_prob) for _, log_prob, _ in best) > 1 + ROUNDING:
            raise self._malformed(
                "hold probabilities that sum to 1 at most", [log_prob for _, log_prob, _ in best]
            )
        return best

    def _parse_entry(self, entry: object) -> tuple[float, int | None]:
        """Return the log-probability and rank of one token."""
        fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
        log_prob, rank = fields.get("logprob", math.nan), fields.get("rank")
        if type(log_prob) not in (int, float) or not LOWEST <= log_prob <= ROUNDING:
            raise self._malformed("hold log-probabilities, finite and at most 0", entry)
        return float(log_prob), rank if isinstance(rank, int) else None

    def _post(self, body: Mapping[str, Any]) -> bytes:
        """Send a request, with retries, and return the content of the response."""
        self.requests += 1
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            response = self._pool.request(
                "POST", self.url, json=body, headers=headers, redirect=False, decode_content=False
            )
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) else error
            raise ExpertError(
                f"the teacher must answer at {self.url} within {self._timeout:g} seconds, got "
                f"{self._redact(str(reason))}: check that it runs; the same command then resumes"
            ) from None
        except OversizeError:
            most = self._allowance.max_bytes
            raise self._malformed(f"have at most {most} bytes for this request", "more") from None
        except (ValueError, ArithmeticError, MemoryError) as error:  # of lengths of no meaning
            raise self._malformed("be HTTP", error) from None
        if response.status != 200:
            raise ExpertError(
                f"the teacher must accept the request at {self.url}, got status {response.status}: "
                f"{self._redact(response.data.decode(errors='replace'))}"
            )
        return response.data

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            response = json.loads(data, parse_constant=_reject_constant)
        except (ValueError, RecursionError) as error:
            raise self._malformed(f"be JSON ({error})", data[:MAX_READ]) from None
        if not isinstance(response, dict):
            raise self._malformed("be a JSON object", response)
        return response

    def _malformed(self, rule: str, value: object) -> ExpertError:
        shown = self._redact(_readable(value))
        return ExpertError(
            f"a response of {self.url} must {rule}, got {shown}: none of it was stored; check that "
            "the server is vLLM or speaks its protocol, for this model"
        )

    def _redact_record(self, record: logging.LogRecord) -> bool:
        """Redact what urllib3 logs, which repeats parts of responses; a filter of its loggers."""
        record.msg, record.args = self._redact(record.getMessage()), ()
        record.exc_info = record.exc_text = None
        return True


def _max_bytes(prompts: Sequence[Sequence[int]], parameters: Mapping[str, Any]) -> int:
    """Return the largest size of the response to a request, many times the usual one."""
    read = sum(map(len, prompts)) * (2 + parameters.get("prompt_logprobs", 0))
    written = len(prompts) * parameters.get("n", 1) * parameters.get("max_tokens", 0)
    return BASE_BYTES + BYTES_PER_TOKEN * (read + written)


def _readable(value: object) -> str:
    """Return `value` as text, or the name of its type if it is nested too deeply for that."""
    try:
        return str(value)
    except RecursionError:
        return type(value).__name__


def _is_unicode(text: str) -> bool:
    """Return False for a text with half a surrogate, which no tokenizer reads."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _token_id(key: str) -> int:
    """Return the token id that `key` spells, -1 if it spells none."""
    is_id = key.isdecimal() and key.isascii() and len(key) <= MAX_DIGITS
    return int(key) if is_id else -1


def _reject_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")
