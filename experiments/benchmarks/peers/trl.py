"""Updates of on-policy distillation by TRL's two trainers, each in a process of its own.

TRL runs in its fastest way: it keeps its caches and all activations, without gradient
checkpointing, its default. Needs the extra `bench`.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch

from textgen_env.tokenizers.pretrained import PretrainedTokenizer
from textgen_experiments.benchmarks.peers.models import Size, random_words
from textgen_experiments.benchmarks.peers.updates import UpdateSeconds, synchronize
from textgen_experiments.models.formats import extra
from textgen_experiments.runs.malloc import retain_freed_memory
from textgen_experiments.runs.worker_processes import WorkerProcesses

TEACHER_WEIGHT = 0.5
LEARNING_RATE = 1e-4
IGNORED_LABEL = -100  # label of tokens that do not count
PLACEHOLDER_TEXT = "w0"  # for a task or trainer that requires text; it is never read


class TRLUpdates(ABC):
    """Timed updates by a trainer of TRL's, always on the same prompts.

    Args:
        folder: holds the folders `teacher` and `student`.
        size: size of the pair.
        bfloat16: whether to run under autocast, as the option `bf16` of TRL.
        device: device of the models.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path, size: Size, bfloat16: bool, device: str = "cpu") -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.size, self.device = size, torch.device(device)
        self.seconds: list[UpdateSeconds] = []
        self.tokens: list[float] = []
        self._parts = {"rollout": 0.0, "label": 0.0}
        settings = {
            "output_dir": str(folder / "trl"),
            "per_device_train_batch_size": size.batch_size,
            "beta": TEACHER_WEIGHT,
            "temperature": 1.0,
            "learning_rate": LEARNING_RATE,
            "optim": "adamw_torch_fused",
            "bf16": bfloat16,
            "use_cpu": device == "cpu",
            "gradient_checkpointing": False,
            "report_to": [],
        }
        self.trainer = trainer = self.make_trainer(folder, settings)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1  # set by its loop otherwise
        trainer.model = trainer.accelerator.prepare_model(trainer.model).train()
        self.time_parts()

    @abstractmethod
    def make_trainer(self, folder: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401 - TRL's class
        """Return the trainer with the settings that all of them share."""

    @abstractmethod
    def inputs(self) -> Any:  # noqa: ANN401 - as the trainer takes it
        """Return a batch as the trainer's loop gives it to `training_step`."""

    @abstractmethod
    def time_parts(self) -> None:
        """Let `timed` measure the functions of the trainer that write and that ask the teacher."""

    @abstractmethod
    def tokens_of(self, inputs: Any) -> float:  # noqa: ANN401 - as the trainer takes it
        """Return the number of tokens that were learned from in the update of `inputs`."""

    def __call__(self) -> int:
        """Make one update: the steps of the trainer's loop that learning needs."""
        trainer, inputs, start = self.trainer, self.inputs(), time.perf_counter()
        self._parts.update(rollout=0.0, label=0.0)
        trainer.training_step(trainer.model, inputs, None)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        synchronize(self.device)
        whole = time.perf_counter() - start
        self.seconds.append(UpdateSeconds.of(whole, **self._parts))
        self.tokens.append(self.tokens_of(inputs))
        return 1

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Return `work`, whose seconds are counted as those of a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as `work`
            synchronize(self.device)
            start = time.perf_counter()
            answer = work(*args, **kwargs)
            synchronize(self.device)
            self._parts[part] += time.perf_counter() - start
            return answer

        return timed


class GKDTrainerUpdates(TRLUpdates):
    """Timed updates by `GKDTrainer` with lmbda = 1, whose logits are whole."""

    name = "GKDTrainer"

    def make_trainer(self, folder: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401 - TRL's class
        """Return the trainer with the settings that all of them share."""
        with extra("bench"):
            gkd, data = import_module("trl.experimental.gkd"), import_module("datasets")
        message = {"role": "user", "content": PLACEHOLDER_TEXT}
        config = gkd.GKDConfig(**settings, lmbda=1.0, max_new_tokens=self.size.max_steps)
        return gkd.GKDTrainer(
            model=str(folder / "student"),
            teacher_model=str(folder / "teacher"),
            args=config,
            train_dataset=data.Dataset.from_dict({"messages": [[message]]}),
            processing_class=PretrainedTokenizer.load(folder / "student").backend,
        )

    def inputs(self) -> Any:  # noqa: ANN401 - as the trainer takes it
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

    def time_parts(self) -> None:
        """Let `timed` measure the functions of the trainer that write and that ask the teacher."""
        trainer = self.trainer
        trainer.generate_on_policy_outputs = self.timed(
            "rollout", trainer.generate_on_policy_outputs
        )
        trainer.teacher_model.forward = self.timed("label", trainer.teacher_model.forward)

    def tokens_of(self, inputs: Any) -> float:  # noqa: ANN401 - as the trainer takes it
        """Return the number of tokens that were learned from in the update of `inputs`."""
        return float((inputs["labels"] != IGNORED_LABEL).sum())


class DistillationTrainerUpdates(TRLUpdates):
    """Timed updates by `DistillationTrainer`, whose loss is computed from hidden states in chunks.

    The seconds of its label are those of the teacher's hidden states; its head is in the loss.
    """

    name = "DistillationTrainer"

    def make_trainer(self, folder: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401 - TRL's class
        """Return the trainer with the settings that all of them share."""
        with extra("bench"):
            trl, data = import_module("trl"), import_module("datasets")
        backend = PretrainedTokenizer.load(folder / "student").backend
        backend.padding_side = "left"
        config = trl.DistillationConfig(
            **settings, max_completion_length=self.size.max_steps, pad_to_multiple_of=None
        )
        return trl.DistillationTrainer(
            model=str(folder / "student"),
            teacher_model=str(folder / "teacher"),
            args=config,
            train_dataset=data.Dataset.from_dict({"prompt": [PLACEHOLDER_TEXT]}),
            processing_class=backend,
        )

    def inputs(self) -> Any:  # noqa: ANN401 - as the trainer takes it
        """Return prompts as text, which the trainer encodes in each update."""
        backend = self.trainer.processing_class
        return [{"prompt": backend.decode(row)} for row in random_words(self.size).tolist()]

    def time_parts(self) -> None:
        """Let `timed` measure the functions of the trainer that write and that ask the teacher."""
        trainer = self.trainer
        trainer._generate_single_turn = self.timed("rollout", trainer._generate_single_turn)
        backbone = trainer.accelerator.unwrap_model(trainer.teacher_model).model
        backbone.forward = self.timed("label", backbone.forward)

    def tokens_of(self, inputs: Any) -> float:  # noqa: ANN401 - as the trainer takes it
        """Return the number of tokens that were learned from in the update of `inputs`."""
        del inputs
        (batch,) = self.trainer._buffered_inputs
        return float(batch["completion_mask"].sum())


class TRLUpdatesInWorker:
    """Timed updates by TRL in a process of its own, which waits while others work.

    The process is needed because the library `accelerate` supports one precision per process.

    Args:
        make: a `TRLUpdates` with its arguments, made in that process; it is pickled.
        retain_memory: whether to call `retain_freed_memory`; otherwise every large tensor is
            mapped anew.
    """

    def __init__(self, make: Callable[[], TRLUpdates], *, retain_memory: bool) -> None:
        self.seconds: list[UpdateSeconds] = []
        self.tokens: list[float] = []
        self._update = WorkerProcesses(_trl_update, make, retain_memory)

    def __call__(self) -> int:
        """Make one update and wait for it."""
        seconds, tokens = self._update()
        self.seconds.append(seconds)
        self.tokens.append(tokens)
        return 1


def _trl_update(
    make: Callable[[], TRLUpdates], retain_memory: bool
) -> Callable[[], tuple[UpdateSeconds, float]]:
    """Return a function that makes an update here and returns its seconds and tokens."""
    if retain_memory:
        retain_freed_memory()
    updates = make()

    def update() -> tuple[UpdateSeconds, float]:
        updates()
        return updates.seconds[-1], updates.tokens[-1]

    return update
