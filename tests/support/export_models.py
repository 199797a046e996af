"""What tests of exports share: a Transformer whose texts vary and end, its tokenizer, sources."""

import torch

from tests.support.toy import random_sources
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tokenizers.subword import Tokenizer

WORDS = tuple(f"w{index}" for index in range(57))


def lively():
    """A Transformer over 64 tokens, 60 of which are its tokenizer's, and that tokenizer."""
    model = Transformer(TransformerConfig(64, 32, num_heads=2, feed_forward=64))
    enliven(model)
    with torch.no_grad():
        model.embedding.weight[60:] *= 0.1  # what the tokenizer has no piece for
    return model.eval(), Tokenizer.from_words(WORDS)


def student_of(tokenizer):
    """A Transformer with a tokenizer's vocabulary and special tokens, and 20 sources for it."""
    config = TransformerConfig(tokenizer.vocab_size, 32, num_heads=2, feed_forward=64)
    model, (pad, _, end) = Transformer(config, tokenizer.special), tokenizer.special
    enliven(model)
    texts = torch.randint(3, 20, (20, 6), generator=torch.Generator().manual_seed(0))
    rows = [[*row[: 1 + place % 6], end] for place, row in enumerate(texts.tolist())]
    return model.eval(), torch.tensor([[*row, *[pad] * (7 - len(row))] for row in rows])


def enliven(model):
    """Make weights so large that not the previous token alone decides what is written."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.add_(0.3 * noise)
            else:
                weight.copy_(0.1 * noise if name == "embedding.weight" else noise)
        model.decoder_norm.bias += 3 * model.embedding.weight[model.special.end]


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
