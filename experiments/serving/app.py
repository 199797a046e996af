"""Routes of the server: completions in OpenAI's style, translation, health and figures."""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp

from textgen_env.generation.sampling import Sampling
from textgen_env.tasks.lines import in_one_line
from textgen_env.tokenizers.chat import ASSISTANT, ChatTokenizer, conversation
from textgen_experiments.serving.bodies import (
    ChatBody,
    CompletionBody,
    TranslateBody,
    WritingBody,
)
from textgen_experiments.serving.errors import ApiError, answer_errors, brief
from textgen_experiments.serving.gate import Measured, RequestGate
from textgen_experiments.serving.metrics import ServingMetrics
from textgen_experiments.serving.service import (
    ClientGoneError,
    TextService,
    WritingSettings,
    WrittenText,
)

ROUTES = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/translate",
        "/health",
        "/metrics",
    }
)
CLIENT_GONE = 499  # as nginx logs it; nobody reads the answer


def create_app(
    service: TextService, metrics: ServingMetrics, *, key: str | None, most_bytes: int
) -> ASGIApp:
    """Return the application of a server.

    Args:
        service: writes the texts.
        metrics: counts of what is served.
        key: key that requests must have; None for no key.
        most_bytes: largest body of a request.
    """
    app = FastAPI(title="textgen serve", docs_url=None, redoc_url=None)
    answer_errors(app)
    _add_texts(app, service, metrics)
    _add_state(app, service, metrics)
    routes = ROUTES | {f"/v1/models/{service.model.name}"}
    return Measured(RequestGate(app, key, most_bytes, service.timeout), metrics, routes)


def _add_texts(app: FastAPI, service: TextService, metrics: ServingMetrics) -> None:
    """Add the routes that write texts."""

    async def write(
        request: Request, param: str, sources: Sequence[str], settings: WritingSettings
    ) -> list[WrittenText]:
        written = await service.write(request, param, sources, settings)
        metrics.count_texts(
            [each.source_tokens for each in written], [each.num_tokens for each in written]
        )
        return written

    @app.exception_handler(ClientGoneError)
    async def unread(_: Request, error: ClientGoneError) -> Response:
        del error
        return Response(status_code=CLIENT_GONE)

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionBody) -> dict[str, Any]:
        """Complete each prompt, as OpenAI's route of this name does; greedy by default."""
        _check_model(body.model, service.model.name)
        body.check_supported()
        written = await write(request, "prompt", body.prompt, _writing_settings(body))
        return completion(service.model.name, written, body.n or 1)

    @app.post("/translate")
    async def translate(request: Request, body: TranslateBody) -> dict[str, list[str]]:
        """Write the text of each source greedily, as `textgen generate` does."""
        settings = WritingSettings(body.max_tokens)
        written = await write(request, "text", body.text, settings)
        return {"texts": [in_one_line(each.text) for each in written]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatBody) -> dict[str, Any]:
        """Answer a conversation, as OpenAI's route of this name does; greedy by default."""
        _check_model(body.model, service.model.name)
        body.check_supported()
        source = _conversation(body, service)
        written = await write(request, "messages", [source], _writing_settings(body))
        return chat_completion(service.model.name, written, body.n or 1)


def _add_state(app: FastAPI, service: TextService, metrics: ServingMetrics) -> None:
    """Add the routes that tell of the server itself."""
    name = service.model.name
    served = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "textgen"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model that is served."""
        return {"object": "list", "data": [served]}

    @app.get("/v1/models/{asked:path}")
    async def model(asked: str) -> dict[str, Any]:
        """Describe the model that is served."""
        _check_model(asked, name)
        return served

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the server is there."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def figures() -> Response:
        """Return the figures that Prometheus reads."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


def completion(model: str, written: Sequence[WrittenText], copies: int) -> dict[str, Any]:
    """Return the answer of `/v1/completions`.

    Args:
        model: name of the model.
        written: all copies of one source side by side.
        copies: texts for each source.
    """
    choices = [{"text": each.text} for each in written]
    return _answer("cmpl", "text_completion", model, written, copies, choices)


def chat_completion(model: str, written: Sequence[WrittenText], copies: int) -> dict[str, Any]:
    """Return the answer of `/v1/chat/completions`; arguments as `completion`'s."""
    choices = [{"message": {"role": ASSISTANT, "content": each.text}} for each in written]
    return _answer("chatcmpl", "chat.completion", model, written, copies, choices)


def _answer(
    prefix: str,
    kind: str,
    model: str,
    written: Sequence[WrittenText],
    copies: int,
    choices: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the parts that answers of OpenAI's routes share, around the text of each choice."""
    source_tokens = sum(each.source_tokens for each in written[::copies])
    num_tokens = sum(each.num_tokens for each in written)
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": i, **choice, "logprobs": None, "finish_reason": each.finish_reason}
            for i, (choice, each) in enumerate(zip(choices, written, strict=True))
        ],
        "usage": {
            "prompt_tokens": source_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": source_tokens + num_tokens,
        },
    }


def _conversation(body: ChatBody, service: TextService) -> str:
    """Return the messages as a source.

    Raises:
        ApiError: the model's sources are no conversations.
    """
    if not isinstance(service.model.tokenizer, ChatTokenizer):
        raise ApiError(
            400,
            f"model must be one that was trained on messages, got {brief(service.model.name)}: "
            "send the text to /translate or /v1/completions",
            param="model",
        )
    return conversation([message.model_dump() for message in body.messages])


def _check_model(asked: str | None, served: str) -> None:
    """Raise `ApiError` where a request asks for a model that is not served."""
    if asked not in (None, served):
        raise ApiError(
            404,
            f"model must be {brief(served)}, the one that is served, got {brief(asked)}",
            param="model",
            code="model_not_found",
        )


def _writing_settings(body: WritingBody) -> WritingSettings:
    """Return the settings of a request's texts; temperature 0 is greedy."""
    sampling = Sampling(body.temperature, top_p=body.top_p) if body.temperature else None
    return WritingSettings(body.max_tokens, sampling, body.n or 1, body.seed)
