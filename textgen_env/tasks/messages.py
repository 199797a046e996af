"""From a list of messages in a record to a pair: a conversation, and the assistant's answer."""

from collections import Counter
from collections.abc import Iterable, Sequence

from textgen_env.tasks.task import DataError, Pair
from textgen_env.tokenizers.chat import ASSISTANT, ChatTokenizer, Message, conversation, messages_in


def checked_messages(value: object, place: str) -> list[Message]:
    """Return the messages of a list, each with its role and content.

    Raises:
        DataError: `value` is no list of messages, or a content is no text.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: messages must be a list of at least one, got {_kind(value)}")
    return [_checked(each, f"{place}, message {number}") for number, each in enumerate(value, 1)]


def _checked(value: object, place: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{place} must be an object with role and content, got {_kind(value)}")
    found = {}
    for name in ("role", "content"):
        text = value.get(name)
        if not isinstance(text, str):
            raise DataError(f'{place}: "{name}" must be a string, got {_kind(text)}')
        found[name] = text.strip() if name == "content" else text
    return found


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def pair_of_messages(messages: Sequence[Message], place: str, view: str | None) -> Pair:
    """Return the pair of a conversation and the assistant's message that ends it.

    Raises:
        DataError: the last message is not the assistant's, or is the only one.
    """
    *before, last = messages
    if last["role"] != ASSISTANT or not before:
        raise DataError(
            f"{place}: messages must end with one of the {ASSISTANT} after another, got the roles "
            f"{', '.join(message['role'] for message in messages)}"
        )
    return Pair(conversation(before), last["content"], view)


def source_of_messages(messages: Sequence[Message], view: str | None) -> Pair:
    """Return the conversation without a reference, without the assistant's message at its end."""
    before = list(messages)
    while len(before) > 1 and before[-1]["role"] == ASSISTANT:
        before.pop()
    return Pair(conversation(before), None, view)


def without_special_pieces(
    pairs: Iterable[Pair], tokenizer: ChatTokenizer, dropped: Counter[str]
) -> list[Pair]:
    """Return the pairs whose messages spell no special piece; count the others in `dropped`."""
    pieces = tokenizer.special_pieces.values()
    kept = []
    for pair in pairs:
        contents = "\0".join(
            message["content"]
            for text in (pair.source, pair.expert_view)
            for message in messages_in(text)
        )
        if any(piece in contents for piece in pieces):
            dropped["spells a special piece"] += 1
        else:
            kept.append(pair)
    return kept
