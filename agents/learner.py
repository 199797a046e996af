"""The one training loop: collect, loss, update, log, evaluate, checkpoint.

It knows no algorithm, but holds what one keeps. Placement and the sum over processes are
`accelerate`'s. It leaves out learning-rate schedules other than warm-up and linear decay, and any
choice of what to log where: each update's figures go to a function.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from agents.agent import Agent
from agents.batches import batch_indices, generator_for, seed_of
from agents.buffer import Experience
from agents.checkpoint import Counters, load_checkpoint, save_atomically, save_checkpoint
from textgen_env.models.storage import Model
from textgen_env.types import Writer
from textgen_env.vector_env import TextGenVectorEnv

Record = Mapping[str, float]


class TrainingError(RuntimeError):
    """Training cannot go on."""


@dataclass(frozen=True)
class LearnerConfig:
    """How a student is trained, whatever the agent.

    Attributes:
        updates: optimizer updates in all.
        batch_size: examples an update.
        accumulate: parts a batch is cut into, to save memory; the result does not depend on it.
        learning_rate: at its highest.
        warmup: updates in which the rate rises from 0.
        decay: share of the updates, at the end, in which the rate falls to 0 along a line.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        evaluate_every: updates between two evaluations on validation, each with a checkpoint.
        seed: of every random choice.
    """

    updates: int = 1200
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 4e-3
    warmup: int = 200
    decay: float = 0.9
    weight_decay: float = 0.01
    clip: float = 1.0
    evaluate_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size", "accumulate", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size ({self.batch_size}), got {self.accumulate}"
            )
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {self.decay}")

    def learning_rate_at(self, update: int) -> float:
        """The rate of update number `update`, counted from 0."""
        rising = (update + 1) / max(1, self.warmup)
        falling = (self.updates - update) / max(1.0, self.decay * self.updates)
        return self.learning_rate * min(1.0, rising, falling)


class Learner:
    """Trains one student with one agent, resumably.

    Args:
        agent: the algorithm.
        student: the model to be trained; its weights are changed.
        env: the environment that rollouts step, with `num_slots` slots.
        folder: `last.safetensors` and, by validation, `best.safetensors` are written here.
        config: how to train.
        precision: dtype of autocast and of the copy of the student that acts.

    Raises:
        ExpertError: the agent needs more than the environment's expert gives.
        ValueError: the agent keeps fewer rows than are collected together, keeps any in one of
            several processes, or wants to know of more tokens than there are.
        CheckpointError: the folder's checkpoint cannot be gone on from.
    """

    def __init__(
        self,
        agent: Agent,
        student: Model,
        env: TextGenVectorEnv,
        folder: Path,
        config: LearnerConfig,
        precision: torch.dtype,
    ) -> None:
        agent.check_expert(env.expert)
        self.env, self.folder, self.config = env, folder, config
        self.precision = precision
        self.accelerator = Accelerator(mixed_precision="no", cpu=env.device.type == "cpu")
        self.student = student.to(self.accelerator.device)
        self.actor = copy.deepcopy(self.student).to(precision).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.buffer = agent.make_buffer(env)
        if self.buffer is not None and self.accelerator.num_processes > 1:
            raise ValueError(
                "an agent with a buffer must run in one process, for one buffer is all that a "
                f"checkpoint holds, got {self.accelerator.num_processes}: run without torchrun"
            )
        self.counters = Counters()
        if self.last.exists():
            self.counters = load_checkpoint(self.last, self.student, self.optimizer, self.buffer)
        self._agent = agent
        self._asked = env.expert.queries.tokens  # before training

    @property
    def agent(self) -> Agent:
        """The algorithm, adapted to the evaluations so far."""
        return self._agent.adapted(self.counters.validation)

    @property
    def last(self) -> Path:
        """The file to resume from."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        """The student's weights that were best on validation."""
        return self.folder / "best.safetensors"

    def train(
        self,
        evaluate: Callable[[Model], float],
        log: Callable[[int, Record], None],
    ) -> Counters:
        """Run to the last update, from the last checkpoint if there is one.

        Args:
            evaluate: the validation BLEU of a model.
            log: called with the number of the update and its figures.
                Of several processes, only the main one calls these two.

        Raises:
            TrainingError: the loss or the gradient is not finite; nothing has been saved over the
                last good checkpoint.
        """
        for experience in self._rollouts():
            for batch in self._batches(experience):
                record = self._update(batch)
                if self.accelerator.is_main_process:
                    log(self.counters.update, record)
            if self._due():
                self._evaluate(evaluate, log)
        return self.counters

    def _rollouts(self) -> Iterator[Experience]:
        """What `pool` updates learn from, from the present update on."""
        config, pool = self.config, self.agent.pool
        lengths = (self.env.examples.reference != self.env.special.pad).sum(1).cpu()
        first = self.counters.update
        batches = batch_indices(lengths, config.batch_size, config.seed, first)
        while (update := self.counters.update) < config.updates:
            start = time.perf_counter()
            copy_weights(self.student, self.actor)
            indices = torch.cat([self._share(next(batches)) for _ in range(pool)])
            experience = self.agent.experience(
                indices.to(self.env.device),
                self.env,
                self.actor,
                update / config.updates,
                generator_for(config.seed, self._own("collect"), update),
                self.buffer,
            )
            self.counters.seconds += time.perf_counter() - start
            yield experience

    def _share(self, indices: Tensor) -> Tensor:
        """This process's part of a batch."""
        return indices[self.accelerator.process_index :: self.accelerator.num_processes]

    def _own(self, purpose: str) -> str:
        """A name for this process's own randomness."""
        return f"{purpose} of process {self.accelerator.process_index}"

    def _batches(self, experience: Experience) -> Iterator[Experience]:
        """What each update learns from, as long as there are updates left.

        Those of similar length come together, because one long text widens its whole batch.
        """
        pool, update = self.agent.pool, self.counters.update
        lengths = experience.trajectories.mask.sum(1)
        by_length = lengths.argsort(stable=True).view(pool, -1)
        generator = generator_for(self.config.seed, "pool", update)
        for rows in by_length[torch.randperm(pool, generator=generator)]:
            if self.counters.update < self.config.updates:
                yield experience.select(rows).trimmed(self.env.special)

    def _update(self, batch: Experience) -> Record:
        """One optimizer update; returns its figures."""
        start, update, config = time.perf_counter(), self.counters.update, self.config
        torch.manual_seed(seed_of(config.seed, self._own("dropout"), update))
        loss, tokens = self._backward(batch)
        norm = self.accelerator.clip_grad_norm_(self.student.parameters(), config.clip)
        assert norm is not None, "clip_grad_norm_ returns the norm for every backend used here"
        loss_value, norm_value = torch.stack([loss, norm.to(loss.device)]).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            raise TrainingError(
                f"loss and gradient must be finite, got {loss_value} and {norm_value} at update "
                f"{update}; the last good checkpoint is kept, try a lower learning_rate"
            )
        rate = config.learning_rate_at(update)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - start
        self.counters.update += 1
        self.counters.seconds += seconds
        asked, self._asked = self._asked, self.env.expert.queries.tokens
        asked = self._asked - asked  # while this update's text was written and now
        states = batch.trajectories
        written = ((states.writer == Writer.STUDENT) & states.mask).sum()
        asked, written = self._sum(torch.stack([written.new_tensor(asked), written])).tolist()
        self.counters.teacher_tokens += asked
        return {
            "loss": loss_value,
            "gradient_norm": norm_value,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
            "student_share": written / tokens,
            "teacher_tokens": self.counters.teacher_tokens,
            **self.agent.coefficients(update / config.updates),
        }

    def _backward(self, batch: Experience) -> tuple[Tensor, int]:
        """Gradients of the mean loss over the batch's counted actions; the loss and their number.

        One denominator, however the batch is cut into parts and spread over processes.
        """
        self.student.train()
        tokens = self._sum(batch.trajectories.mask.sum())
        total = torch.zeros((), device=self.env.device)
        for rows in torch.arange(len(batch)).tensor_split(self.config.accumulate):
            part = batch.select(rows).trimmed(self.env.special)
            with self._autocast():
                expert = part.expert(self.env.expert)
                loss = self.agent.loss(part.trajectories, self.student, expert)
            share = loss * (part.trajectories.mask.sum() / tokens)
            self.accelerator.backward(share)
            total += share.detach()
        if self.accelerator.num_processes > 1:
            for parameter in self.student.parameters():
                if parameter.grad is not None:
                    parameter.grad = self._sum(parameter.grad)
            total = self._sum(total)
        return total, int(tokens)

    def _sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        return cast("Tensor", self.accelerator.reduce(tensor, "sum"))

    def _autocast(self) -> torch.autocast:
        """PyTorch's own: `accelerate` fixes one precision for all runs of a process."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.env.device.type, self.precision, enabled=enabled)

    def _due(self) -> bool:
        """Whether an update just done, or one of its pool, calls for an evaluation."""
        update = self.counters.update
        every = update % self.config.evaluate_every < self.agent.pool
        return every or update == self.config.updates

    def _evaluate(
        self, evaluate: Callable[[Model], float], log: Callable[[int, Record], None]
    ) -> None:
        """Score the student, keep it if it is the best so far, and write a checkpoint."""
        if not self.accelerator.is_main_process:
            return
        copy_weights(self.student, self.actor)
        score = evaluate(self.actor)
        self.counters.validation.append(score)
        log(self.counters.update, {"bleu": score})
        if score > self.counters.best:
            self.counters.best, self.counters.best_update = score, self.counters.update
            save_atomically(self.best, self.student.state_dict(), {})
        save_checkpoint(self.last, self.student, self.optimizer, self.counters, self.buffer)


def copy_weights(origin: nn.Module, target: nn.Module) -> None:
    """Overwrite the weights of `target` by those of `origin`, in the precision of `target`."""
    with torch.no_grad():
        for old, new in zip(target.parameters(), origin.parameters(), strict=True):
            old.copy_(new)
