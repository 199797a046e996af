"""Pretrained causal language models, which continue the source as a prompt."""

import torch
from torch import Tensor
from transformers import DynamicCache

from textgen_env.models.huggingface.cache import PositionMode, RowCache, positions_of
from textgen_env.models.huggingface.model import HuggingFaceModel


class HuggingFaceCausal(HuggingFaceModel):
    """An `AutoModelForCausalLM` as a `SequenceModel`.

    The source without its end token is the prompt. If something must stand between source and
    target, the task puts it into the source's text. Prompts are padded on the left, so that all
    rows write the same slot, and positions are counted from each prompt's first token.
    """

    def start(self, source: Tensor, max_steps: int) -> RowCache:
        """Read the prompts and return their cache."""
        prompt, mask = self.frame_source(source, as_prompt=True)
        self.check_length(prompt.shape[1] + max_steps)
        cache = DynamicCache()
        self.model(
            input_ids=prompt,
            attention_mask=mask,
            position_ids=positions_of(mask),
            cache=cache,
            use_cache=True,
            # As a tensor: with the number 1 the head's weight would be copied for each row.
            logits_to_keep=prompt.new_tensor([-1]),
        )
        return RowCache.from_prompt(
            cache,
            prompt,
            mask,
            source_mask=mask[:, :0],
            max_steps=max_steps,
            position_mode=PositionMode.GIVEN,
        )

    def next_logits(self, tokens: Tensor, cache: RowCache) -> Tensor:
        """Return the model's logits, (R, K, V'), after each of `tokens`, (R, K)."""
        return self.model(
            input_ids=tokens,
            attention_mask=cache.visible,
            position_ids=cache.next_positions(tokens.shape[1]),
            cache=cache.for_transformers(tokens.shape[1]),
            use_cache=True,
        ).logits

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Return the logits (B, T, V) of every action; none are computed for the prompt."""
        inputs = self.sequence_inputs(source, actions)
        output = self.model(**inputs, use_cache=False, logits_to_keep=actions.shape[1])
        return self.restrict_vocabulary(output.logits)

    def sequence_inputs(self, source: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """Return the tokens of prompts and targets, their mask and their positions."""
        prompt, mask = self.frame_source(source, as_prompt=True)
        self.check_length(prompt.shape[1] + actions.shape[1])
        prefix = actions[:, :-1]
        mask = torch.cat([mask, torch.ones_like(prefix, dtype=torch.bool)], dim=1)
        return {
            "input_ids": torch.cat([prompt, prefix], dim=1),
            "attention_mask": mask,
            "position_ids": positions_of(mask),
        }
