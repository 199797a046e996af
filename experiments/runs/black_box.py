"""Texts of a closed model from a file, which complete the distributions of a run's teacher.

Source: after Chen et al. 2024 (Proxy-KD), arXiv:2401.07013.
"""

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from textgen_env.experts.expert import Expert
from textgen_env.experts.proxy import ProxyExpert
from textgen_env.tasks.columns import Columns, stripped
from textgen_env.tasks.task import Pair, TextTask, encode
from textgen_env.tasks.text_files import read_pairs
from textgen_experiments.runs.folder import RunError
from textgen_experiments.runs.progress import tell

BLACK_BOX_TEXTS = "black_box_texts"


def with_black_box(proxy: Expert, path: Path, prior_weight: float, task: TextTask) -> ProxyExpert:
    """Return the proxy, completed by the texts in a file, and report how many there are.

    Args:
        proxy: gives its whole distribution, over the task's tokens.
        path: file of pairs, a source of the task's training split and a text of the black box, in
            fields of the names source and reference where the file has names. A source may have
            any number of texts; other sources are left out.
        prior_weight: number of texts that the proxy's word is worth, above 0.
        task: with the part of its training split that is learned from.

    Raises:
        DataError: the file is missing, of no known format or broken.
        RunError: it holds no text of a training source.
    """
    views = {pair.source: pair.expert_source for pair in task.train}
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for pair in map(stripped, read_pairs(BLACK_BOX_TEXTS, path, Columns("source", "reference"))):
        if pair.source in views and pair.reference:
            texts[pair.source].append(pair.reference)
    if not texts:
        raise RunError(
            f"{BLACK_BOX_TEXTS} must hold a text of a training source, got none of "
            f"{len(views):,} sources in {path}: write each source as the task has it"
        )
    pairs = [Pair(source, text, views[source]) for source, own in texts.items() for text in own]
    tell(
        f"black box: texts of {len(texts):,} of {len(views):,} training sources, "
        f"{len(pairs):,} in all, from {path}"
    )
    roomy = replace(task, max_target_length=sys.maxsize)  # an episode ends before a longer text
    return ProxyExpert(proxy, encode(pairs, roomy), prior_weight=prior_weight)
