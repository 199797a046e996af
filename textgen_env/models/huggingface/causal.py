"""A pretrained language model: the source is the beginning of the text that it goes on with."""

import torch
from torch import Tensor
from transformers import DynamicCache

from textgen_env.models.huggingface.cache import Counting, RowCache, positions
from textgen_env.models.huggingface.model import HuggingFaceModel


class HuggingFaceCausal(HuggingFaceModel):
    """An `AutoModelForCausalLM` as a `SequenceModel`.

    The source, without its end token, is a prompt: whatever is to stand between it and what is
    written, a task says in its text. Prompts are padded on the left, so that rows write side by
    side, and positions are counted from each prompt's first token.
    """

    def start(self, source: Tensor, max_steps: int) -> RowCache:
        """Read the prompts."""
        prompt, mask = self.framed(source, left=True)
        self.check_length(prompt.shape[1] + max_steps)
        cache = DynamicCache()
        self.model(
            input_ids=prompt,
            attention_mask=mask,
            position_ids=positions(mask),
            cache=cache,
            use_cache=True,
            logits_to_keep=prompt.new_tensor([-1]),  # 1 has a head's weight copied for each row
        )
        return RowCache.begun(
            cache,
            prompt,
            mask,
            source_mask=mask[:, :0],
            max_steps=max_steps,
            counting=Counting.SLOTS,
        )

    def next_logits(self, tokens: Tensor, cache: RowCache) -> Tensor:
        """Logits (R, 1, V) after `tokens`, (R, 1)."""
        return self.model(
            input_ids=tokens,
            attention_mask=cache.visible,
            position_ids=cache.length[:, None],
            cache=cache.for_transformers(),
            use_cache=True,
        ).logits

    def sequence_logits(self, source: Tensor, actions: Tensor) -> Tensor:
        """Logits (B, T, V) of every action; none are computed for the prompt."""
        prompt, mask = self.framed(source, left=True)
        self.check_length(prompt.shape[1] + actions.shape[1])
        written = actions[:, :-1]
        mask = torch.cat([mask, torch.ones_like(written, dtype=torch.bool)], dim=1)
        output = self.model(
            input_ids=torch.cat([prompt, written], dim=1),
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=False,
            logits_to_keep=actions.shape[1],
        )
        return self.known(output.logits)
