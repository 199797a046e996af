"""A student that copies, but for the states in which a test lets it err."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textgen_env.types import SpecialTokens


@dataclass(frozen=True)
class CopyCache:
    """Sources of B rows and the tokens that each has written."""

    source: Tensor
    length: Tensor

    def select_rows(self, index):
        return CopyCache(self.source[index], self.length[index])


class CopyTable(nn.Module):
    """Logits by the token written last and the source's token at the same place: (V, V, V).

    Args:
        vocab_size: V.
        right: logit of the token to be copied; all others have 0.
    """

    special = SpecialTokens()

    def __init__(self, vocab_size, right=4.0):
        super().__init__()
        self.vocab_size = vocab_size
        self.table = nn.Parameter(right * torch.eye(vocab_size).repeat(vocab_size, 1, 1))

    @torch.no_grad()
    def corrupt(self, after, read, wrong, excess):
        """Let the student write `wrong` where it reads `read` after having written `after`."""
        self.table[after, read, wrong] = self.table[after, read, read] + excess

    def probabilities(self):
        """Return the (V, V, V) probabilities by the last token, the one to copy and the next."""
        return self.table.detach().softmax(-1)

    def start(self, source, max_steps):
        del max_steps
        return CopyCache(source, torch.zeros_like(source[:, 0]))

    def step(self, previous, cache):
        logits = self.table[previous, self._read(cache.source, cache.length[:, None])[:, 0]]
        return logits, CopyCache(cache.source, cache.length + 1)

    def sequence_logits(self, source, actions):
        previous = actions.roll(1, 1)
        previous[:, 0] = self.special.start
        places = torch.arange(actions.shape[1]).expand_as(actions)
        return self.table[previous, self._read(source, places)]

    def _read(self, source, places):
        """Return the source's tokens at these places; the end token beyond its end."""
        read = source.gather(1, places.clamp(max=source.shape[1] - 1))
        beyond = (places >= source.shape[1]) | (read == self.special.pad)
        return read.masked_fill(beyond, self.special.end)
