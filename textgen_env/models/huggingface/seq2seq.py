"""A pretrained encoder-decoder: the source is read by the one and the target written by the other.

What the decoder reads before the first action is the model's own affair: a start token, which some
share with padding and some with the end, and after it perhaps one that is forced, such as a
language.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from textgen_env.models.huggingface.cache import Counting, RowCache
from textgen_env.models.huggingface.model import HuggingFaceConfig, HuggingFaceModel
from textgen_env.tokenizers.pretrained import Conventions

# How decoders know their positions; others count one position for all rows.
COUNTING = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "switch_transformers"), Counting.SLOTS),
    **dict.fromkeys(
        ("bart", "marian", "mbart", "pegasus", "blenderbot", "blenderbot-small", "plbart", "mvp"),
        Counting.ROWS,
    ),
}


class HuggingFaceSeq2Seq(HuggingFaceModel):
    """An `AutoModelForSeq2SeqLM` as a `SequenceModel`.

    Args:
        model: the model, of `transformers` or with adapters.
        config: what is noted of it.
        conventions: of its tokenizer.
        max_positions: longest text that it knows, in tokens; None for any length.
        opening: what the decoder reads before the first action, at least one token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: HuggingFaceConfig,
        conventions: Conventions,
        max_positions: int | None,
        opening: tuple[int, ...],
    ) -> None:
        super().__init__(model, config, conventions, max_positions)
        self.opening = opening
        self.counting = COUNTING.get(config.model_type, Counting.TOGETHER)
        if self.counting is Counting.ROWS:
            positions = cast("nn.Module", model.get_decoder().embed_positions)
            positions.register_forward_hook(_by_row)

    def start(self, source: Tensor, max_steps: int) -> RowCache:
        """Encode the source, and project its keys and values for every layer of the decoder."""
        tokens, mask = self.framed(source, left=False)
        prompt = self._opening(source)
        self.check_length(max(tokens.shape[1], prompt.shape[1] + max_steps))
        encoded = self.model.get_encoder()(input_ids=tokens, attention_mask=mask)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=prompt,
            cache=cache,
            use_cache=True,
        )
        return RowCache.begun(
            cache,
            prompt,
            torch.ones_like(prompt, dtype=torch.bool),
            source_mask=mask,
            max_steps=max_steps,
            counting=self.counting,
        )

    def next_logits(self, tokens: Tensor, cache: RowCache) -> Tensor:
        """Logits (R, 1, V) after `tokens`, (R, 1)."""
        # Stands for the encoder's output, of which only the width is asked once it is projected.
        encoded = cache.source_mask[..., None].to(cache.source[0].dtype)
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=cache.source_mask,
            decoder_input_ids=tokens,
            decoder_attention_mask=cache.visible,
            cache=cache.for_transformers(),
            use_cache=True,
        ).logits

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits (B, T, V) of every action."""
        tokens, mask = self.framed(source, left=False)
        prompt = self._opening(source)
        self.check_length(max(tokens.shape[1], prompt.shape[1] + actions.shape[1]))
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            decoder_input_ids=torch.cat([prompt, actions[:, :-1]], dim=1),
            use_cache=False,
        )
        return self.known(output.logits[:, len(self.opening) - 1 :])

    def _opening(self, source: Tensor) -> Tensor:
        """(B, P) int64, the opening of each row."""
        return source.new_tensor(self.opening).repeat(len(source), 1)


def _by_row(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """A hook: embeddings of positions (R, L), which learned ones give a dimension too much."""
    del module, inputs
    return output.squeeze(0) if output.dim() == 4 else output
