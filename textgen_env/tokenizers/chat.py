"""Sources that are conversations, encoded as an instruction model's chat template puts them.

A conversation is text, too: a JSON list of messages, of which each has a role and a content. The
template and the ids that it makes are the `transformers` library's (the extra `hf`). Left out:
contents of several parts, tools, and images.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textgen_env.tokenizers.pretrained import PROBE, PretrainedTokenizer
from textgen_env.tokenizers.subword import TextTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat.json"  # beside a saved tokenizer, if its sources are conversations
USER, ASSISTANT = "user", "assistant"
Message = Mapping[str, str]


class ChatError(ValueError):
    """A tokenizer that cannot encode conversations, or a conversation that cannot be encoded."""


def conversation(messages: Sequence[Message]) -> str:
    """Return messages as the text that `ChatTokenizer.encode` takes for a conversation."""
    return json.dumps([*map(dict, messages)], ensure_ascii=False)


def messages_in(text: str) -> list[Message]:
    """Return the messages of a conversation; any other text is one message of the user."""
    whole: list[Message] = [{"role": USER, "content": text}]
    if not text.startswith("["):
        return whole
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return whole
    if not isinstance(found, list) or not found or not all(map(_is_message, found)):
        return whole
    return found


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(each, str) for each in value.values())
    )


class ChatTokenizer(PretrainedTokenizer):
    """Tokenizer of an instruction model: a source is a conversation that the assistant goes on.

    The ids of a source are those of `apply_chat_template` with a generation prompt, without what
    the model itself puts around every source.

    Args:
        backend: a tokenizer of `transformers` with a chat template.

    Attributes:
        special_pieces: ids and spellings of all its special pieces, which no message may spell.

    Raises:
        ChatError: it has no template, its template puts other pieces around a conversation than
            the tokenizer does, or ends an assistant's message by another piece than the end token.
        ValueError: the tokenizer has no end token.
    """

    def __init__(self, backend: "PreTrainedTokenizerBase") -> None:
        super().__init__(backend)
        if not self.backend.chat_template:
            raise ChatError(
                "tokenizer must have a chat template to encode messages, got none: take an "
                "instruction model, or use prompt in place of messages"
            )
        known = self.conventions
        self._prefix, self._suffix = known.prefix, known.suffix
        added = self.backend.added_tokens_decoder.items()
        self.special_pieces = {token: str(piece) for token, piece in added if piece.special}
        self._check_end()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each conversation, without the prefix and suffix of sources.

        Raises:
            ChatError: a message spells a special piece, or the template refuses a conversation.
        """
        return [self._bare(self._templated(messages_in(text))) for text in texts]

    def save(self, path: Path) -> None:
        """Write the tokenizer as a pretrained one, and that its sources are conversations."""
        super().save(path)
        (path.parent / CHAT).write_text(json.dumps({"sources": "messages"}) + "\n")

    def _templated(self, messages: Sequence[Message], *, is_prompt: bool = True) -> list[int]:
        """Return the ids of messages, with the beginning of an answer if they are a prompt."""
        if piece := self.special_piece_in(messages):
            raise ChatError(
                f"a message must not spell a special piece of the model, got {piece!r}: leave the "
                "conversation out, or change its text"
            )
        try:
            return self.backend.apply_chat_template(
                [*map(dict, messages)],
                add_generation_prompt=is_prompt,
                tokenize=True,
                return_dict=False,
            )
        except Exception as error:  # a template raises what it likes
            roles = ", ".join(message["role"] for message in messages)
            raise ChatError(
                f"messages must be a conversation of the model's template, got the roles {roles}: "
                f"{error}"
            ) from error

    def special_piece_in(self, messages: Sequence[Message]) -> str | None:
        """Return a special piece that a message spells, which would end or begin one; else None."""
        contents = [message["content"] for message in messages]
        pieces = self.special_pieces.values()
        return next((piece for piece in pieces for text in contents if piece in text), None)

    def _bare(self, ids: list[int]) -> list[int]:
        """Return ids without what the model puts before and after every source.

        Raises:
            ChatError: the template does not put that there.
        """
        before, after = len(self._prefix), len(ids) - len(self._suffix)
        if tuple(ids[:before]) != self._prefix or tuple(ids[after:]) != self._suffix:
            raise ChatError(
                f"the chat template must begin and end as the tokenizer's texts, {self._prefix} "
                f"and {self._suffix}, got {tuple(ids[:before])} and {tuple(ids[after:])}: change "
                "what the tokenizer adds (add_bos_token in tokenizer_config.json)"
            )
        return ids[before:after]

    def _check_end(self) -> None:
        """Raise `ChatError` unless an assistant's message ends with the end token."""
        question: list[Message] = [{"role": USER, "content": PROBE}]
        answer = {"role": ASSISTANT, "content": PROBE}
        prompt = self._templated(question)
        whole = self._templated([*question, answer], is_prompt=False)
        rest = [token for token in whole[len(prompt) :] if token in self.special_pieces]
        end = self.special.end
        if not rest or rest[0] != end:
            piece = self.special_pieces[rest[0]] if rest else "no special piece"
            raise ChatError(
                "the chat template must end an assistant's message with the end token, "
                f"{self.backend.eos_token}, got {piece}: set eos_token in tokenizer_config.json of "
                "teacher and student to the piece that ends a message"
            )


def as_chat(tokenizer: TextTokenizer | None) -> ChatTokenizer:
    """Return a tokenizer of a pretrained model as one whose sources are conversations.

    Raises:
        ChatError: it is none of a pretrained model, or as for `ChatTokenizer`.
    """
    if isinstance(tokenizer, ChatTokenizer):
        return tokenizer
    if not isinstance(tokenizer, PretrainedTokenizer):
        raise ChatError(
            "messages must be encoded by the tokenizer of a pretrained instruction model, got "
            f"{'none' if tokenizer is None else 'one of this project'}: give --teacher or "
            "--student-init"
        )
    return ChatTokenizer(tokenizer.backend)


def in_kind_of(model: TextTokenizer, tokenizer: TextTokenizer) -> TextTokenizer:
    """Return `tokenizer`, for conversations if the sources of `model` are such."""
    return as_chat(tokenizer) if isinstance(model, ChatTokenizer) else tokenizer
