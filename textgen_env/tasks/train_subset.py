"""Part of the training split: numbers of pairs and of sources, chosen by a hash of their text.

The choice depends on the text alone, so it is the same on every machine, and a smaller choice is a
part of a larger one. Of two views the expert's counts: the examples are the same however much of
them the student may read.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from textgen_env.tasks.sources import apart_from
from textgen_env.tasks.task import Pair, TextTask, text_hash


def train_subset(
    task: TextTask, num_pairs: int | None, num_sources: int | None, draw: int = 0
) -> TextTask:
    """Return the task with part of its training pairs and of its sources without references.

    Args:
        task: of all pairs and sources.
        num_pairs: pairs with references, taken by `take_train_pairs`; None for all.
        num_sources: sources without, taken by `take_train_sources` afterwards; None for all.
        draw: number of the draw of the pairs.

    Raises:
        ValueError: a number is not between 1 and that of the task.
    """
    task = task if num_pairs is None else take_train_pairs(task, num_pairs, draw)
    return task if num_sources is None else take_train_sources(task, num_sources)


def take_train_pairs(task: TextTask, count: int, draw: int = 0) -> TextTask:
    """Return the task with `count` of its training pairs, those whose text hashes lowest.

    All sources without references stay, and those that only pairs left out had too come in.

    Args:
        task: with at least `count` training pairs.
        count: pairs to keep.
        draw: number of the draw, at least 0; another one keeps other pairs.

    Raises:
        ValueError: `count` is not between 1 and the number of training pairs.
    """
    pairs, sources = by_kind(task.train)
    _check_count("train_pairs", count, f"training pairs of {task.name}", len(pairs))
    chosen = sorted(pairs, key=partial(_key, draw=draw))[:count]
    new, repeated = apart_from(chosen, task.repeated)
    return replace(task, train=[*chosen, *sources, *new], repeated=tuple(repeated))


def take_train_sources(task: TextTask, count: int) -> TextTask:
    """Return the task with `count` of its sources without references, those that hash lowest.

    Raises:
        ValueError: `count` is not between 0 and the number of those sources.
    """
    pairs, sources = by_kind(task.train)
    if count:
        of = f"sources without references of {task.name}"
        _check_count("train_sources", count, of, len(sources))
    return replace(task, train=[*pairs, *sorted(sources, key=_key)[:count]])


def by_kind(train: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs with references, and the sources without, each in their order."""
    pairs = [pair for pair in train if pair.reference is not None]
    return pairs, [pair for pair in train if pair.reference is None]


def _check_count(name: str, count: int, of: str, number: int) -> None:
    """Raise `ValueError` unless so many can be taken."""
    if not 1 <= count <= number:
        rule = f"between 1 and {number}, the number of {of}" if number else f"None without {of}"
        raise ValueError(f"{name} must be {rule}, got {count}")


def _key(pair: Pair, draw: int = 0) -> int:
    salt = f"{draw}\t" if draw else ""
    return text_hash(f"{salt}{pair.expert_view}\t{pair.reference or ''}")
