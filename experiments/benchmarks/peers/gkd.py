"""Updates of on-policy distillation: TRL's `GKDTrainer` with lmbda = 1, and the agent `gkd`.

Both read the same two folders, continue the same prompts with the student, sample from the same
distribution, use the same divergence, clip the gradient and step AdamW. TRL runs in its fastest
way: it keeps its caches and all activations, without gradient checkpointing, its default.
Needs the extra `bench`.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textgen_agents.gkd import GKD
from textgen_env.models.acceleration.cuda_graph import with_cuda_graphs
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import Pair, TextTask
from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_env.types import Examples
from textgen_experiments.benchmarks.peers.models import Size, random_words, save_llama
from textgen_experiments.benchmarks.peers.updates import (
    LearnerUpdates,
    TimedExpert,
    TimedUpdates,
    UpdateSeconds,
    endless_learner,
    synchronize,
)
from textgen_experiments.benchmarks.worker_process import WorkerProcess
from textgen_experiments.models.formats import extra
from textgen_experiments.runs.factories import learning_env
from textgen_experiments.runs.malloc import retain_freed_memory

TEACHER_WEIGHT = 0.5
LEARNING_RATE = 1e-4
IGNORED_LABEL = -100  # label of tokens that do not count
PLACEHOLDER_PAIR = Pair("w0", "w0")  # for a task or trainer that requires text; it is never read


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
    theirs = partial(TRLUpdatesInWorker, folder, size, bfloat16, device)
    if device != "cpu":
        return {"TRL GKDTrainer": theirs(retain_memory=False), **ours}
    return {
        "TRL GKDTrainer, as Python starts it": theirs(retain_memory=False),
        "TRL GKDTrainer, freed memory kept": theirs(retain_memory=True),
        **ours,
    }


def save_pair(folder: Path, size: Size) -> None:
    """Save a random teacher and a random student, in folders of these names."""
    save_llama(folder / "teacher", size, size.teacher_layers)
    save_llama(folder / "student", size, size.student_layers)


class TRLUpdates:
    """Timed updates by TRL's trainer, always on the same prompts.

    Args:
        folder: folder written by `save_pair`.
        size: size of the pair.
        bfloat16: whether to run under autocast, as the option `bf16` of TRL.
        device: device of the models.
    """

    def __init__(self, folder: Path, size: Size, bfloat16: bool, device: str = "cpu") -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.size, self.trainer = size, _gkd_trainer(folder, size, bfloat16, device)
        self.device = torch.device(device)
        self.seconds: list[UpdateSeconds] = []
        self.tokens: list[float] = []
        self._parts = {"rollout": 0.0, "label": 0.0}
        trainer = self.trainer
        trainer.generate_on_policy_outputs = self._timed(
            "rollout", trainer.generate_on_policy_outputs
        )
        trainer.teacher_model.forward = self._timed("label", trainer.teacher_model.forward)

    def __call__(self) -> int:
        """Make one update: the steps of the trainer's loop that learning needs."""
        trainer, inputs, start = self.trainer, self.inputs(), time.perf_counter()
        self._parts.update(rollout=0.0, label=0.0)
        trainer.training_step(trainer.model, inputs)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        synchronize(self.device)
        whole = time.perf_counter() - start
        self.seconds.append(UpdateSeconds.of(whole, **self._parts))
        self.tokens.append(float((inputs["labels"] != IGNORED_LABEL).sum()))  # tokens of the texts
        return 1

    def inputs(self) -> dict[str, Tensor]:
        """Return a batch as the trainer's collator makes it."""
        words = random_words(self.size).to(self.device)
        prompts = torch.cat([torch.ones_like(words[:, :1]), words], 1)  # 1 is the start token
        mask = torch.ones_like(prompts)
        return {
            "input_ids": prompts,
            "attention_mask": mask,
            "labels": prompts,
            "prompts": prompts,
            "prompt_attention_mask": mask,
        }

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as `work`
            synchronize(self.device)
            start = time.perf_counter()
            answer = work(*args, **kwargs)
            synchronize(self.device)
            self._parts[part] += time.perf_counter() - start
            return answer

        return timed


class TRLUpdatesInWorker:
    """Timed updates by TRL in a process of its own, which waits while others work.

    The process is needed because the library `accelerate` supports one precision per process.

    Args:
        folder: folder written by `save_pair`.
        size: size of the pair.
        bfloat16: as for `TRLUpdates`.
        device: as for `TRLUpdates`.
        retain_memory: whether to call `retain_freed_memory`; otherwise every large tensor is
            mapped anew.
    """

    def __init__(
        self, folder: Path, size: Size, bfloat16: bool, device: str, *, retain_memory: bool
    ) -> None:
        self.seconds: list[UpdateSeconds] = []
        self.tokens: list[float] = []
        self._update = WorkerProcess(_trl_update, folder, size, bfloat16, device, retain_memory)

    def __call__(self) -> int:
        """Make one update and wait for it."""
        seconds, tokens = self._update()
        self.seconds.append(seconds)
        self.tokens.append(tokens)
        return 1


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


def _gkd_trainer(folder: Path, size: Size, bfloat16: bool, device: str) -> Any:  # noqa: ANN401 - TRL's class
    """Return TRL's trainer, ready for `training_step`."""
    with extra("bench"):
        gkd, data = import_module("trl.experimental.gkd"), import_module("datasets")
    message = {"role": "user", "content": PLACEHOLDER_PAIR.source}
    config = gkd.GKDConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=size.batch_size,
        lmbda=1.0,
        beta=TEACHER_WEIGHT,
        temperature=1.0,
        max_new_tokens=size.max_steps,
        learning_rate=LEARNING_RATE,
        optim="adamw_torch_fused",
        bf16=bfloat16,
        use_cpu=device == "cpu",
        gradient_checkpointing=False,
        report_to=[],
    )
    trainer = gkd.GKDTrainer(
        model=str(folder / "student"),
        teacher_model=str(folder / "teacher"),
        args=config,
        train_dataset=data.Dataset.from_dict({"messages": [[message]]}),
        processing_class=PretrainedTokenizer.load(folder / "student").backend,
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # set by its loop otherwise
    trainer.model = trainer.accelerator.prepare_model(trainer.model).train()
    return trainer


def _trl_update(
    folder: Path, size: Size, bfloat16: bool, device: str, retain_memory: bool
) -> Callable[[], tuple[UpdateSeconds, float]]:
    """Return a function that makes an update here and returns its seconds and tokens."""
    if retain_memory:
        retain_freed_memory()
    updates = TRLUpdates(folder, size, bfloat16, device)

    def update() -> tuple[UpdateSeconds, float]:
        updates()
        return updates.seconds[-1], updates.tokens[-1]

    return update
