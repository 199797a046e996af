"""Models, tokenizers and sources for tests of exports."""

import torch

from tests.support.toy import random_sources
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tokenizers.subword import Tokenizer

WORDS = tuple(f"w{index}" for index in range(57))


def varied_transformer():
    """Return a Transformer whose texts vary and end, and its tokenizer.

    The model has 64 tokens, and the tokenizer has pieces for the first 60 of them.
    """
    model = Transformer(TransformerConfig(64, 32, num_heads=2, feed_forward=64))
    enlarge_weights(model)
    with torch.no_grad():
        model.embedding.weight[60:] *= 0.1  # makes tokens without a piece improbable
    return model.eval(), Tokenizer.from_words(WORDS)


def student_for(tokenizer):
    """Return a Transformer with a tokenizer's vocabulary, and 20 sources for it."""
    config = TransformerConfig(tokenizer.vocab_size, 32, num_heads=2, feed_forward=64)
    model, (pad, _, end) = Transformer(config, tokenizer.special), tokenizer.special
    enlarge_weights(model)
    texts = torch.randint(3, 20, (20, 6), generator=torch.Generator().manual_seed(0))
    rows = [[*row[: 1 + index % 6], end] for index, row in enumerate(texts.tolist())]
    return model.eval(), torch.tensor([[*row, *[pad] * (7 - len(row))] for row in rows])


def enlarge_weights(model):
    """Enlarge the weights, so that the next token does not depend on the previous one alone."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.add_(0.3 * noise)
            else:
                weight.copy_(0.1 * noise if name == "embedding.weight" else noise)
        model.decoder_norm.bias += 3 * model.embedding.weight[model.special.end]


def constant_transformer(best):
    """Return a model that prefers the tokens of `best`, in this order, at every state."""
    model, tokenizer = varied_transformer()
    with torch.no_grad():
        model.decoder_norm.weight.zero_()
        model.decoder_norm.bias.fill_(1.0)
        model.embedding.weight.zero_()
        for rank, token in enumerate(best):
            model.embedding.weight[token] = 1.0 / (1 + rank)
    return model, tokenizer


def sources(count, longest=12):
    """Draw `count` sources of 2 to `longest` tokens, the end token included.

    There is no empty source, because CTranslate2 returns an empty text for it.
    """
    rows = random_sources(2 * count, longest, 60)
    return rows[rows[:, 0] != 2][:count]
