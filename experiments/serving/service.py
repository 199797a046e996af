"""The waiting side of a request: its texts are checked, queued, awaited and made text again."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
from fastapi import Request

from textgen_env.generation.decoding import LogitsError
from textgen_env.generation.open_batch import OpenText
from textgen_env.generation.sampling import Sampling
from textgen_env.tokenizers.subword import TextTokenizer
from textgen_experiments.serving.errors import RETRY_SECONDS, SERVER_ERROR, ApiError
from textgen_experiments.serving.worker import (
    DecodingWorker,
    QueueFullError,
    WorkerStoppedError,
)

R = TypeVar("R")


class ClientGoneError(Exception):
    """Client that does not wait for its answer any more."""


@dataclass(frozen=True)
class ServedModel:
    """Model as requests know it.

    Attributes:
        name: its name in requests.
        tokenizer: the model's own.
        max_source_tokens: longest source, the end token included.
        max_tokens: longest text, the end token included.
    """

    name: str
    tokenizer: TextTokenizer
    max_source_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class WritingSettings:
    """Settings of the texts of one request.

    Attributes:
        max_tokens: most tokens of a text; None for the server's limit.
        sampling: distribution to sample from; None for the most probable tokens.
        copies: number of texts for each source.
        seed: seed of all texts of the request; None for one that nobody knows.
    """

    max_tokens: int | None = None
    sampling: Sampling | None = None
    copies: int = 1
    seed: int | None = None


@dataclass(frozen=True)
class WrittenText:
    """Text that was written.

    Attributes:
        text: the text.
        source_tokens: tokens of its source, the end token included.
        num_tokens: tokens that were written, the end token included.
        finish_reason: "stop" if it has an end token, "length" if it was cut.
    """

    text: str
    source_tokens: int
    num_tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class TextService:
    """Writer of the texts of requests; it waits in the event loop, and others work.

    Attributes:
        model: the model as requests know it.
        worker: writes texts.
        timeout: seconds for the texts of a request.
        reader: one thread for the tokenizer, which may not be used by several.
    """

    model: ServedModel
    worker: DecodingWorker
    timeout: float
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "tokenizer"))

    async def write(
        self, request: Request, param: str, sources: Sequence[str], settings: WritingSettings
    ) -> list[WrittenText]:
        """Return the texts for `sources` in their order, all copies of one side by side.

        Args:
            request: where the client is seen to go away.
            param: name of the argument that holds the sources, for errors.
            sources: texts that are not empty.
            settings: of the texts.

        Raises:
            ApiError: too many texts, one that is too long, a full queue, no answer in time, or a
                server that stops.
            ClientGoneError: the client has gone away; its texts are not written any more.
        """
        self._check_size(param, len(sources), settings)
        try:
            async with asyncio.timeout(self.timeout):
                rows = await self._token_ids(param, sources)
                texts = self._open_texts(param, rows, settings)
                return await self._await_texts(request, texts)
        except TimeoutError:
            raise ApiError(
                504,
                f"texts must be written within {self.timeout:g} seconds, got more work than that: "
                "send fewer or shorter ones, or raise --timeout",
            ) from None
        except QueueFullError as error:
            message = f"{error}: try again in a second"
            raise ApiError(429, message, code="queue_full", headers=RETRY_SECONDS) from None
        except WorkerStoppedError as error:
            raise ApiError(503, str(error), headers=RETRY_SECONDS) from None
        except LogitsError as error:
            raise ApiError(SERVER_ERROR, str(error)) from None

    def _check_size(self, param: str, count: int, settings: WritingSettings) -> None:
        """Raise `ApiError` where a request can never be answered."""
        capacity, longest = self.worker.capacity, self.model.max_tokens
        if count * settings.copies > capacity:
            copies = f" of {settings.copies} copies" if settings.copies > 1 else ""
            raise ApiError(
                400,
                f"{param} must ask for at most {capacity:,} texts, got {count:,}{copies}: send "
                "them in parts, or raise --max-waiting",
                param=param,
            )
        if settings.max_tokens is not None and settings.max_tokens > longest:
            raise ApiError(
                400,
                f"max_tokens must be at most {longest}, got {settings.max_tokens}: raise "
                "--max-tokens of the server",
                param="max_tokens",
            )

    async def _token_ids(self, param: str, sources: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each source without its end token."""
        try:
            return await self._read(self.model.tokenizer.encode, sources)
        except ValueError as error:  # of a tokenizer of words alone
            raise ApiError(400, f"{param}: {error}", param=param) from None

    def _open_texts(
        self, param: str, rows: Sequence[list[int]], settings: WritingSettings
    ) -> list[OpenText]:
        """Return the texts to write, for sources without their end tokens."""
        limit, end = self.model.max_source_tokens, self.model.tokenizer.special.end
        for number, row in enumerate(rows, 1):
            if len(row) >= limit:
                place = f" as text {number}" if len(rows) > 1 else ""
                raise ApiError(
                    400,
                    f"{param} must have at most {limit} tokens with its end token, got "
                    f"{len(row) + 1:,}{place}: send it in sentences, or raise --max-source-tokens",
                    param=param,
                    code="context_length_exceeded",
                )
        sources = [torch.tensor([*row, end]) for row in rows for _ in range(settings.copies)]
        seed = secrets.randbits(63) if settings.seed is None else settings.seed
        most = settings.max_tokens or self.model.max_tokens
        return [
            OpenText(source, most, settings.sampling, settings.sampling and text_generator(seed, i))
            for i, source in enumerate(sources)
        ]

    async def _await_texts(self, request: Request, texts: Sequence[OpenText]) -> list[WrittenText]:
        futures = self.worker.submit(texts)
        try:
            await _settled(request, futures)
        finally:
            for future in futures:
                future.cancel()  # without effect on what is done
        decoded = await self._read(self.model.tokenizer.decode, [text.tokens for text in texts])
        end = self.model.tokenizer.special.end
        return [
            WrittenText(
                text=line,
                source_tokens=len(text.source),
                num_tokens=len(text.tokens),
                finish_reason="stop" if text.tokens[-1] == end else "length",
            )
            for line, text in zip(decoded, texts, strict=True)
        ]

    async def _read(self, function: Callable[[Sequence], R], texts: Sequence) -> R:
        return await asyncio.get_running_loop().run_in_executor(self.reader, function, texts)


async def _settled(request: Request, futures: Sequence[Future[OpenText]]) -> None:
    """Wait for the futures, of which the first error is raised, or for the client to go away."""
    writing = asyncio.create_task(_wait_for_all(futures))
    leaving = asyncio.create_task(_wait_until_gone(request))
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not writing.done():
            raise ClientGoneError
        writing.result()
    finally:
        leaving.cancel()
        writing.cancel()


async def _wait_for_all(futures: Sequence[Future[OpenText]]) -> None:
    """Wait for futures of another thread, of which the first error is raised."""
    await asyncio.gather(*map(asyncio.wrap_future, futures))


async def _wait_until_gone(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def text_generator(seed: int, number: int) -> torch.Generator:
    """Return the source of randomness of a request's text by its number."""
    (state,) = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64).tolist()
    return torch.Generator().manual_seed(state)
