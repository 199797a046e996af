"""Updates of on-policy distillation: two trainers of TRL's, and the agent `gkd`.

All read the same two folders, continue the same prompts with the student, sample from the same
distribution, use the same divergence, clip the gradient and step AdamW. Needs the extra `bench`.
"""

from functools import partial
from pathlib import Path

import torch

from textgen_agents.gkd import GKD
from textgen_env.models.acceleration.cuda_graph import with_cuda_graphs
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import Pair, TextTask
from textgen_env.types import Examples
from textgen_experiments.benchmarks.peers.models import Size, random_words, save_llama
from textgen_experiments.benchmarks.peers.trl import (
    PLACEHOLDER_TEXT,
    TEACHER_WEIGHT,
    DistillationTrainerUpdates,
    GKDTrainerUpdates,
    TRLUpdatesInWorker,
)
from textgen_experiments.benchmarks.peers.updates import (
    LearnerUpdates,
    TimedExpert,
    TimedUpdates,
    endless_learner,
)
from textgen_experiments.runs.factories import learning_env

PLACEHOLDER_PAIR = Pair(PLACEHOLDER_TEXT, PLACEHOLDER_TEXT)
TRAINERS = (GKDTrainerUpdates, DistillationTrainerUpdates)


def gkd_updates(
    folder: Path, size: Size, precision: torch.dtype, onednn: bool, device: str = "cpu"
) -> dict[str, TimedUpdates]:
    """Return the sides of the comparison.

    Args:
        folder: an empty folder.
        size: size of the models and the batch.
        precision: precision of this project's models that only act, and of autocast.
        onednn: whether oneDNN computes this project's float32 products.
        device: device of all sides.

    Raises:
        RunError: TRL is not installed.
    """
    save_pair(folder, size)
    bfloat16 = precision == torch.bfloat16
    ours = {"textgen gkd": textgen_updates(folder, size, precision, onednn, device)}
    makers = {kind.name: partial(kind, folder, size, bfloat16, device) for kind in TRAINERS}
    ways = {", as Python starts it": False, ", freed memory kept": True}
    sides = {
        f"TRL {name}{way}": TRLUpdatesInWorker(make, retain_memory=retain)
        for name, make in makers.items()
        for way, retain in (ways if device == "cpu" else {"": False}).items()
    }
    return {**sides, **ours}


def save_pair(folder: Path, size: Size) -> None:
    """Save a random teacher and a random student, in folders of these names."""
    save_llama(folder / "teacher", size, size.teacher_layers)
    save_llama(folder / "student", size, size.student_layers)


def textgen_updates(
    folder: Path, size: Size, precision: torch.dtype, onednn: bool, device: str = "cpu"
) -> LearnerUpdates:
    """Return the same updates by this project's learner.

    Args:
        folder: folder written by `save_pair`.
        size: size of the pair.
        precision: precision of the teacher, of the student that writes, and of autocast.
        onednn: whether oneDNN computes float32 products.
        device: device of the models.
    """
    tokenizer, words = load_tokenizer(folder / "student"), random_words(size)
    ends = torch.full_like(words[:, :1], tokenizer.special.end)
    texts = [PLACEHOLDER_PAIR]
    task = TextTask(
        "random", tokenizer, texts, texts, texts, size.source_tokens, size.max_steps, {}
    )
    examples = Examples(source=torch.cat([words, ends], 1), reference=ends)
    expert = TimedExpert(with_cuda_graphs(load_model(folder / "teacher", precision).to(device)))
    learner = endless_learner(
        GKD(student_fraction=1.0, teacher_weight=TEACHER_WEIGHT),
        load_model(folder / "student"),
        learning_env(task, size.batch_size, expert, examples=examples, device=device),
        folder=folder,
        precision=precision,
    )
    return LearnerUpdates(learner, expert, onednn)
