"""Pretrained encoder-decoders, which encode the source and decode the target.

The decoder reads a prompt before the first action: a start token, which some models share with
padding and some with the end token, and possibly a forced token after it, such as a language.
"""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from textgen_env.models.huggingface.cache import PositionMode, RowCache
from textgen_env.models.huggingface.model import HuggingFaceConfig, HuggingFaceModel
from textgen_env.tokenizers.pretrained import Conventions

# Decoders of all other types are treated as SHARED.
POSITION_MODES = {
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5", "switch_transformers"), PositionMode.GIVEN),
    **dict.fromkeys(
        ("bart", "marian", "mbart", "pegasus", "blenderbot", "blenderbot-small", "plbart", "mvp"),
        PositionMode.PER_ROW,
    ),
}


class HuggingFaceSeq2Seq(HuggingFaceModel):
    """An `AutoModelForSeq2SeqLM` as a `SequenceModel`.

    Args:
        model: model of `transformers`, with or without adapters.
        config: description of the model.
        conventions: conventions of its tokenizer.
        max_positions: longest text that it can read, in tokens; None for any length.
        decoder_prompt: tokens that the decoder reads before the first action, at least one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: HuggingFaceConfig,
        conventions: Conventions,
        max_positions: int | None,
        decoder_prompt: tuple[int, ...],
    ) -> None:
        super().__init__(model, config, conventions, max_positions)
        self.decoder_prompt = decoder_prompt
        self.position_mode = POSITION_MODES.get(config.model_type, PositionMode.SHARED)
        if self.position_mode is PositionMode.PER_ROW:
            embeddings = cast("nn.Module", model.get_decoder().embed_positions)
            embeddings.register_forward_hook(_drop_extra_dimension)

    @property
    def rows_move_together(self) -> bool:
        """True if the model counts one position for all rows of a batch."""
        return self.position_mode is PositionMode.SHARED

    def start(self, source: Tensor, max_steps: int) -> RowCache:
        """Encode the source and compute its keys and values for every decoder layer."""
        tokens, mask = self.frame_source(source, as_prompt=False)
        prompt = self._decoder_prompts(source)
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
        return RowCache.from_prompt(
            cache,
            prompt,
            torch.ones_like(prompt, dtype=torch.bool),
            source_mask=mask,
            max_steps=max_steps,
            position_mode=self.position_mode,
        )

    def next_logits(self, tokens: Tensor, cache: RowCache) -> Tensor:
        """Return the model's logits, (R, K, V'), after each of `tokens`, (R, K)."""
        # A placeholder: the source's keys are cached, so only the output's width is still read.
        encoded = cache.source_mask[..., None].to(cache.source[0].dtype)
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=cache.source_mask,
            decoder_input_ids=tokens,
            decoder_attention_mask=cache.visible,
            cache=cache.for_transformers(tokens.shape[1]),
            use_cache=True,
        ).logits

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action."""
        output = self.model(**self.sequence_inputs(source, actions), use_cache=False)
        return self.restrict_vocabulary(output.logits[:, len(self.decoder_prompt) - 1 :])

    def sequence_inputs(self, source: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Return the encoder's tokens, their mask, and the decoder's tokens."""
        tokens, mask = self.frame_source(source, as_prompt=False)
        prompt = self._decoder_prompts(source)
        self.check_length(max(tokens.shape[1], prompt.shape[1] + actions.shape[1]))
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "decoder_input_ids": torch.cat([prompt, actions[:, :-1]], dim=1),
        }

    def _decoder_prompts(self, source: Tensor) -> Tensor:
        """Return the decoder's prompt for each row, (B, P) int64."""
        return source.new_tensor(self.decoder_prompt).repeat(len(source), 1)


def _drop_extra_dimension(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Remove the leading dimension that learned embeddings of (R, L) positions add; a hook."""
    del module, inputs
    return output.squeeze(0) if output.dim() == 4 else output
