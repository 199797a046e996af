"""Bodies of requests, as pydantic checks them."""

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from textgen_experiments.serving.errors import ApiError, brief

MOST_COPIES = 128
LARGEST_SEED = 2**63 - 1
NEUTRAL: dict[str, tuple[object, ...]] = {
    "stream": (False, None),
    "stream_options": (None,),
    "stop": (None, []),
    "echo": (False, None),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "store": (False, None),
    "metadata": (None, {}),
}
"""Arguments of OpenAI's that are not supported, and the values that ask for nothing."""


def _checked_texts(value: object) -> list[str]:
    """Return the texts of a text or list of texts, without spaces around them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"must be a text or a list of at least one text, got {brief(value)}")
    return [
        _checked_text(text, "" if isinstance(value, str) else f" as text {number}")
        for number, text in enumerate(texts, 1)
    ]


def _checked_text(text: object, place: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"must be a text or a list of texts, got {brief(text)}{place}")
    if not text.strip():
        raise ValueError(f"must hold more than spaces, got {brief(text)}{place}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"must be Unicode, got half a surrogate{place}: send UTF-8")
    return text.strip()


Texts = Annotated[list[str], PlainValidator(_checked_texts, json_schema_input_type=str | list[str])]


class WritingBody(BaseModel):
    """Arguments that all of OpenAI's routes have; None is the default, as OpenAI has it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    max_tokens: int | None = Field(
        default=None, ge=1, validation_alias=AliasChoices("max_tokens", "max_completion_tokens")
    )
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=MOST_COPIES)
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    user: str | None = None

    def check_supported(self) -> None:
        """Refuse what the server does not do.

        Raises:
            ApiError: an argument that is not known, or not supported.
        """
        for name, value in (self.model_extra or {}).items():
            _check_neutral(name, value)
        if (self.n or 1) > 1 and not self.temperature:
            raise ApiError(
                400,
                f"n must be 1 at temperature 0, where all texts are the same, got {self.n}: set "
                "temperature",
                param="n",
            )


class CompletionBody(WritingBody):
    """Arguments of the route `/v1/completions`."""

    prompt: Texts


def _joined_parts(value: object) -> object:
    """Return the text of a content that is a list of parts of text, and any other as it is."""
    if not isinstance(value, list) or not value:
        return value
    for number, part in enumerate(value, 1):
        if not _is_text_part(part):
            raise ValueError(
                'must be a text or a list of {"type": "text", "text": ...}, got '
                f"{brief(part)} as part {number}"
            )
    return "".join(part["text"] for part in value)


def _is_text_part(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"type", "text"}
        and value["type"] == "text"
        and isinstance(value["text"], str)
    )


class ChatMessage(BaseModel):
    """One message: who says what, as a text or as parts of text that follow each other."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: Annotated[str, BeforeValidator(_joined_parts)]


class ChatBody(WritingBody):
    """Arguments of the route `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)


class TranslateBody(BaseModel):
    """Arguments of the route `/translate`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Texts
    max_tokens: int | None = Field(default=None, ge=1)


def _check_neutral(name: str, value: Any) -> None:  # noqa: ANN401 - any JSON
    if value is None:  # as clients send what is not set
        return
    if name not in NEUTRAL:
        raise ApiError(
            400,
            f"{brief(name)} must be left out, got {brief(value)}: this server does not know it",
            param=name,
        )
    neutral = NEUTRAL[name]
    if not any(_is_equal(value, each) for each in neutral):
        raise ApiError(
            400,
            f"{name} must be {brief(neutral[0])} or left out, got {brief(value)}: this server does "
            "nothing else",
            param=name,
        )


def _is_equal(value: object, other: object) -> bool:
    """Return True if two values of JSON are equal, of which 0 and false are not."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
