"""Synthetic task whose reference is its source, for tests, demonstrations and debugging.

It needs no data and no package, every word is one token, and a small model learns it in seconds. It
cannot show the quality of real text.
"""

from dataclasses import dataclass
from random import Random

from textgen_env.bounds import check_at_least, check_finite
from textgen_env.tasks.task import Pair, TaskConfig, TextTask
from textgen_env.tokenizers.subword import TextTokenizer, Tokenizer


@dataclass(frozen=True)
class CopyConfig(TaskConfig):
    """Number, words and lengths of the sources.

    Attributes:
        num_words: distinct words, written "w0", "w1" and so on.
        min_length: shortest source, in words.
        max_length: longest source, in words; lengths are drawn uniformly.
        num_train: pairs in the training split.
        num_validation: pairs in the validation split.
        num_test: pairs in the test split.
        seed: another seed gives other sources.
    """

    num_words: int = 20
    min_length: int = 3
    max_length: int = 10
    num_train: int = 2000
    num_validation: int = 200
    num_test: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, num_words=1, min_length=1)
        check_at_least(self, num_train=1, num_validation=1, num_test=1)
        check_finite(self, "max_length", "seed")
        if self.max_length < self.min_length:
            raise ValueError(
                f"max_length must be at least min_length = {self.min_length}, got {self.max_length}"
            )
        possible = self._num_sources()
        if self.num_pairs > possible:
            raise ValueError(
                f"num_train + num_validation + num_test must be at most {possible}, the number of "
                f"distinct sources, got {self.num_pairs}: raise num_words or max_length"
            )

    @property
    def words(self) -> list[str]:
        """Distinct words that sources are made of."""
        return [f"w{index}" for index in range(self.num_words)]

    @property
    def num_pairs(self) -> int:
        """Pairs of all three splits."""
        return self.num_train + self.num_validation + self.num_test

    def _num_sources(self) -> int:
        """Return the number of distinct sources, or one that is above each number of pairs."""
        lengths = range(self.min_length, self.max_length + 1)
        if self.num_words == 1:
            return len(lengths)
        return sum(self.num_words ** min(length, 65) for length in lengths[:65])

    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task, as `copy_task` does."""
        del tokenizer  # every word is one token of its own
        return copy_task(self)


def copy_task(config: CopyConfig | None = None) -> TextTask:
    """Return the task of copying; no source occurs twice, in one split or in two."""
    config = config or CopyConfig()
    words = config.words
    sources = _distinct_sources(words, config)
    pairs = [Pair(source, source) for source in sources]
    held_out = config.num_train + config.num_validation
    return TextTask(
        name="copy",
        tokenizer=Tokenizer.from_words(words),
        train=pairs[: config.num_train],
        validation=pairs[config.num_train : held_out],
        test=pairs[held_out:],
        max_source_length=config.max_length + 1,
        max_target_length=config.max_length + 1,
        dropped={},
    )


def _distinct_sources(words: list[str], config: CopyConfig) -> list[str]:
    """Draw distinct sources and shuffle them, so that short ones are in every split."""
    random = Random(config.seed)
    sources: dict[str, None] = {}  # in the order drawn, which a set would not keep
    while len(sources) < config.num_pairs:
        length = random.randint(config.min_length, config.max_length)
        sources[" ".join(random.choices(words, k=length))] = None
    shuffled = list(sources)
    random.shuffle(shuffled)
    return shuffled
