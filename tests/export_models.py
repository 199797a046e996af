"""What tests of exports share: a Transformer whose texts vary and end, its tokenizer, sources."""

import torch
from toy import random_sources

from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tokenizer import Tokenizer

WORDS = tuple(f"w{index}" for index in range(57))


def lively():
    """A Transformer over 64 tokens, 60 of which are its tokenizer's, and that tokenizer.

    Its weights are so large that what was read and the position, and not the previous token alone,
    decide what is written.
    """
    generator = torch.Generator().manual_seed(0)
    config = TransformerConfig(64, 32, num_heads=2, feed_forward=64, num_encoder_layers=1)
    model = Transformer(config)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.add_(0.3 * noise)
            else:
                weight.copy_(0.1 * noise if name == "embedding.weight" else noise)
        model.embedding.weight[60:] *= 0.1  # what the tokenizer has no piece for
        model.decoder_norm.bias += 3 * model.embedding.weight[model.special.end]
    return model.eval(), Tokenizer.from_words(WORDS)


def constant(best):
    """`lively` with the same logits at every state: the highest are those of `best`, in order."""
    model, tokenizer = lively()
    with torch.no_grad():
        model.decoder_norm.weight.zero_()
        model.decoder_norm.bias.fill_(1.0)
        model.embedding.weight.zero_()
        for place, token in enumerate(best):
            model.embedding.weight[token] = 1.0 / (1 + place)
    return model, tokenizer


def sources(count, longest=12):
    """(count, longest) sources of 2 to `longest` tokens, the end token included.

    An end token alone is an empty text, for which CTranslate2 writes nothing.
    """
    rows = random_sources(2 * count, longest, 60)
    return rows[rows[:, 0] != 2][:count]
