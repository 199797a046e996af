"""Synthetic task of remainders, with or without the steps of long division written out.

A number's remainder can hardly be told at a glance, but each step of long division is a small fact:
a text that writes the steps down leaves nothing else to learn. Recchia showed so with 200 texts.
Numbers are written digit by digit, as words.
"""

from dataclasses import dataclass
from random import Random

from textgen_env.bounds import check_at_least, check_finite
from textgen_env.tasks.task import Pair, TaskConfig, TextTask
from textgen_env.tokenizers.subword import TextTokenizer, Tokenizer

DIGITS = tuple("0123456789")
MODULO, DIVIDED, NEXT, ANSWER = "%", "/", ";", "="
"""Signs of the source, of a step, between steps, and before the remainder."""


@dataclass(frozen=True)
class DivisionConfig(TaskConfig):
    """Numbers, and what is written of their division.

    Attributes:
        traces: write every step of long division before the remainder; if not, the remainder alone.
        min_digits: fewest digits of the dividend.
        max_digits: most digits of the dividend; their number is drawn uniformly.
        largest_divisor: divisors are drawn uniformly from 2 to this, at most 9.
        num_train: pairs in the training split.
        num_validation: pairs in the validation split.
        num_test: pairs in the test split.
        seed: another seed gives other numbers; with the same one the numbers are the same with
            traces and without.

    Source: Recchia 2021, arXiv:2109.02102.
    """

    traces: bool = True
    min_digits: int = 4
    max_digits: int = 5
    largest_divisor: int = 4
    num_train: int = 200
    num_validation: int = 100
    num_test: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, min_digits=1, largest_divisor=2)
        check_at_least(self, num_train=1, num_validation=1, num_test=1)
        check_finite(self, "max_digits", "seed")
        if self.max_digits < self.min_digits:
            raise ValueError(
                f"max_digits must be at least min_digits = {self.min_digits}, got {self.max_digits}"
            )
        if self.largest_divisor > len(DIGITS) - 1:
            raise ValueError(
                f"largest_divisor must be at most 9, a single digit, got {self.largest_divisor}"
            )
        shortest = 10**self.min_digits - 10 ** (self.min_digits - 1)  # numbers of that length
        if self.num_pairs > shortest:
            raise ValueError(
                f"num_train + num_validation + num_test must be at most {shortest}, the dividends "
                f"of min_digits digits, got {self.num_pairs}: raise min_digits"
            )

    @property
    def num_pairs(self) -> int:
        """Pairs of all three splits."""
        return self.num_train + self.num_validation + self.num_test

    def build(self, tokenizer: TextTokenizer | None = None) -> TextTask:
        """Return the task, as `division_task` does."""
        del tokenizer  # every digit is one token of its own
        return division_task(self)


def division_task(config: DivisionConfig | None = None) -> TextTask:
    """Return the task of remainders; no dividend occurs twice, in one split or in two."""
    config = config or DivisionConfig()
    pairs = [
        Pair(_source(dividend, divisor), _target(dividend, divisor, traces=config.traces))
        for dividend, divisor in _distinct_divisions(config)
    ]
    held_out = config.num_train + config.num_validation
    longest = max(len(_target(10**config.max_digits - 1, 2, traces=config.traces).split()), 1)
    return TextTask(
        name="division" if config.traces else "bare division",
        tokenizer=Tokenizer.from_words([*DIGITS, MODULO, DIVIDED, NEXT, ANSWER]),
        train=pairs[: config.num_train],
        validation=pairs[config.num_train : held_out],
        test=pairs[held_out:],
        max_source_length=config.max_digits + 3,
        max_target_length=longest + 1,
        dropped={},
    )


def trace_of(dividend: int, divisor: int) -> str:
    """Return the steps of long division and the remainder, as words.

    Each digit is a step: the remainder so far and the digit, the divisor, its multiple that goes
    into that number, and the new remainder. 94 % 4 is "0 9 / 4 2 1 ; 1 4 / 4 3 2 = 2".

    Args:
        dividend: at least 0.
        divisor: from 2 to 9.
    """
    steps, rest = [], 0
    for digit in map(int, str(dividend)):
        number = 10 * rest + digit
        steps.append(f"{rest} {digit} {DIVIDED} {divisor} {number // divisor} {number % divisor}")
        rest = number % divisor
    return f"{f' {NEXT} '.join(steps)} {ANSWER} {rest}"


def answer_of(text: str) -> str:
    """Return the remainder that a text ends with, its last word; "" for an empty text."""
    return text.split()[-1] if text.split() else ""


def _source(dividend: int, divisor: int) -> str:
    return f"{' '.join(str(dividend))} {MODULO} {divisor}"


def _target(dividend: int, divisor: int, *, traces: bool) -> str:
    return trace_of(dividend, divisor) if traces else str(dividend % divisor)


def _distinct_divisions(config: DivisionConfig) -> list[tuple[int, int]]:
    """Draw the dividends, all different, each with a divisor."""
    random = Random(config.seed)
    divisions: dict[int, int] = {}  # in the order drawn
    while len(divisions) < config.num_pairs:
        digits = random.randint(config.min_digits, config.max_digits)
        dividend = random.randint(10 ** (digits - 1), 10**digits - 1)
        divisor = random.randint(2, config.largest_divisor)
        divisions.setdefault(dividend, divisor)
    return list(divisions.items())
