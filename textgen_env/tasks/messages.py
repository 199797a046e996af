"""From a list of messages in a record to a pair: a conversation, and the assistant's answer."""

from collections import Counter
from collections.abc import Mapping, Sequence

from textgen_env.tasks.task import DataError, Pair
from textgen_env.tokenizers.chat import (
    ASSISTANT,
    ChatTokenizer,
    Message,
    as_chat,
    conversation,
    messages_in,
)
from textgen_env.tokenizers.subword import TextTokenizer


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
        found[name] = text
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


def encodable_conversations(
    splits: Mapping[str, Sequence[Pair]], tokenizer: TextTokenizer | None, dropped: Counter[str]
) -> tuple[dict[str, list[Pair]], ChatTokenizer]:
    """Return the pairs that the chat template can be put around, and the tokenizer that has it.

    Args:
        splits: pairs of conversations.
        tokenizer: of the model that is asked.
        dropped: gets the number of pairs that are left out, whose messages spell a special piece.

    Raises:
        ChatError: the tokenizer has no template for conversations.
    """
    chat = as_chat(tokenizer)
    kept = {
        name: [
            pair
            for pair in pairs
            if not any(
                chat.special_piece_in(messages_in(text)) for text in (pair.source, pair.expert_view)
            )
        ]
        for name, pairs in splits.items()
    }
    count = sum(len(pairs) - len(kept[name]) for name, pairs in splits.items())
    if count:
        dropped["spells a special piece"] += count
    return kept, chat
