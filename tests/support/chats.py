"""Tokenizers of instruction models, in the manner of Llama, Qwen and Gemma."""

from dataclasses import dataclass

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHARACTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


@dataclass(frozen=True)
class ChatFamily:
    """Special pieces and template of a family.

    Attributes:
        begin: piece before every text; None for none.
        end: piece that ends a message, and a text.
        others: further special pieces.
        template: Jinja template of a conversation.
        rendered: what it makes of the messages "be brief" (system), "hi" (user), with the
            beginning of an answer.
    """

    begin: str | None
    end: str
    others: tuple[str, ...]
    template: str
    rendered: str

    def tokenizer(self):
        begin = () if self.begin is None else (self.begin,)
        special = ("<pad>", *begin, self.end, *self.others)
        pieces = {piece: index for index, piece in enumerate((*special, *CHARACTERS))}
        backend = Backend(models.BPE(pieces, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if self.begin:
            named = [(self.begin, pieces[self.begin])]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{self.begin} $A", special_tokens=named
            )
        roles = {"bos_token": self.begin} if self.begin else {}
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=self.end,
            pad_token="<pad>",
            additional_special_tokens=list(self.others),
            chat_template=self.template,
            **roles,
        )


LLAMA = ChatFamily(
    "<|begin_of_text|>",
    "<|eot_id|>",
    ("<|start_header_id|>", "<|end_header_id|>"),
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nbe brief<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
QWEN = ChatFamily(
    None,
    "<|im_end|>",
    ("<|im_start|>", "<|endoftext|>"),
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    "<|im_start|>assistant\n",
)
GEMMA = ChatFamily(
    "<bos>",
    "<end_of_turn>",
    ("<start_of_turn>",),
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "<bos><start_of_turn>system\nbe brief<end_of_turn>\n<start_of_turn>user\nhi<end_of_turn>\n"
    "<start_of_turn>model\n",
)
CHATS = {"llama": LLAMA, "qwen": QWEN, "gemma": GEMMA}
