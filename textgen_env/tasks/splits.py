"""From splits of pairs to a task: its tokenizer, and what fits its limits in tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence

from textgen_env.tasks.sources import SOURCES, apart_from, unseen_sources
from textgen_env.tasks.task import Pair, TextTask, encode_references
from textgen_env.tokenizers.subword import TextTokenizer, Tokenizer


def make_task(
    name: str,
    splits: Mapping[str, Sequence[Pair]],
    tokenizer: TextTokenizer | None,
    *,
    vocab_size: int,
    max_tokens: int,
    max_target_tokens: int | None = None,
    dropped: Counter[str],
) -> TextTask:
    """Return a task of pairs that `keep_pairs` let through.

    A joint tokenizer is trained on the training texts if none is given. Pairs that are too long in
    tokens are left out and counted in `dropped`. Sources without references are learned from unless
    they are held out or given twice (`sources.py`); those that training pairs have too become the
    task's `repeated`.

    Args:
        name: short name of the task.
        splits: pairs of "train", "validation" and "test", and where there are any "sources", which
            have no references.
        tokenizer: the tokenizer of both sides, or None to train one.
        vocab_size: pieces of the tokenizer to be trained.
        max_tokens: longest side in tokens, its end token included.
        max_target_tokens: longest reference, where it is to be shorter; None for `max_tokens`.
        dropped: pairs left out so far, by reason.

    Raises:
        DataError: a split is empty.
    """
    held_out = [*splits["validation"], *splits["test"]]
    sources = unseen_sources(splits.get(SOURCES, ()), held_out, dropped)
    if tokenizer is None:
        tokenizer = train_tokenizer([*splits["train"], *sources], vocab_size)
    limits = max_tokens, max_target_tokens or max_tokens
    kept = {
        split: _within_tokens(pairs, tokenizer, limits, dropped)
        for split, pairs in {**splits, SOURCES: sources}.items()
    }
    new, repeated = apart_from(kept["train"], kept[SOURCES])
    return TextTask(
        name=name,
        tokenizer=tokenizer,
        train=[*kept["train"], *new],
        validation=kept["validation"],
        test=kept["test"],
        max_source_length=limits[0],
        max_target_length=limits[1],
        dropped=dict(dropped),
        repeated=tuple(repeated),
    )


def train_tokenizer(pairs: Sequence[Pair], vocab_size: int) -> Tokenizer:
    """Return a joint tokenizer of all texts of `pairs`, of at most `vocab_size` pieces."""
    return Tokenizer.train(
        (text for pair in pairs for text in pair if text is not None), vocab_size
    )


def _within_tokens(
    pairs: Sequence[Pair], tokenizer: TextTokenizer, limits: tuple[int, int], dropped: Counter[str]
) -> list[Pair]:
    if not pairs:
        return []
    sources = tokenizer.encode([pair.source for pair in pairs])
    references = encode_references(pairs, tokenizer)
    fits = [
        len(source) < limits[0] and len(reference or ()) < limits[1]
        for source, reference in zip(sources, references, strict=True)
    ]
    if not all(fits):
        same = limits[0] == limits[1]
        reason = f"{limits[0]}" if same else f"{limits[0]} source or {limits[1]} target"
        dropped[f"over {reason} tokens"] += fits.count(False)
    return [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
