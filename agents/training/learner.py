"""Learner: the one training loop, which collects, updates, logs, evaluates and checkpoints.

It knows no algorithm. Placement and the sum over processes are `accelerate`'s. Left out: learning
rates other than those of `LearnerConfig`, and where figures go: they are handed to a function.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from torch import Tensor, nn

from textgen_agents.agent import Agent, first_companions
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.losses.objectives import reference_loss, remedy_of_loss
from textgen_agents.rollouts.batches import (
    batch_indices,
    example_lengths,
    generator_for,
    rows_by_length,
    seed_of,
)
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.lengths import expected_lengths, shares_of
from textgen_agents.rollouts.prefix_weights import with_prefix_weights
from textgen_agents.training.answers import checked_batch
from textgen_agents.training.averaging import WeightAverage
from textgen_agents.training.checkpoint import (
    ANCHOR,
    BEST,
    LAST,
    CheckpointClock,
    Counters,
    TrainingStopped,
    copy_weights,
    load_checkpoint,
    save_atomically,
    save_checkpoint,
)
from textgen_agents.training.config import LearnerConfig
from textgen_agents.training.distributed import disable_cudnn_attention, sum_of_processes
from textgen_agents.training.frozen import with_frozen_parts
from textgen_agents.training.gradients import Gradients
from textgen_agents.training.optimizer import (
    make_optimizer,
    set_learning_rate,
    trained_parameters,
)
from textgen_agents.training.regularizers import EWC, NO_REFERENCES, References, ewc_tensors
from textgen_agents.training.requirements import check_requirements
from textgen_agents.training.self_teacher import become_teacher
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.models.acceleration.cuda_graph import with_cuda_graphs
from textgen_env.models.acceleration.prepacked import with_prepacked_weights
from textgen_env.models.storage import Model
from textgen_env.types import Writer

Record = Mapping[str, float]
LogFn = Callable[[int, Record], None]


class TrainingError(RuntimeError):
    """A loss or gradient with which training cannot continue."""


class Learner:
    """Training of one student by one agent, which can be resumed.

    Args:
        agent: the algorithm.
        student: the model to be trained; its weights are changed.
        env: the environment that rollouts step, with `num_slots` slots.
        folder: of the checkpoints: `last.safetensors`, `best.safetensors` by validation, and the
            anchor of EWC, `ewc.safetensors`.
        config: how to train.
        precision: dtype of autocast and of the copy of the student that acts.
        references: the task's own pairs.

    Raises:
        ExpertError: the agent needs more than the environment's expert gives.
        ValueError: the agent keeps fewer rows than are collected together, lacks references, or
            asks for more tokens than there are; the student's vocabulary is not the environment's;
            or a setting is about texts of the student that the agent or the data does not have.
        CheckpointError: the folder's checkpoint cannot be resumed from.
    """

    def __init__(
        self,
        agent: Agent,
        student: Model,
        *,
        env: TextGenVectorEnv,
        folder: Path,
        config: LearnerConfig,
        precision: torch.dtype,
        references: References = NO_REFERENCES,
    ) -> None:
        check_requirements(agent, student, env, config)
        disable_cudnn_attention(env.device)
        self.env, self.folder, self.config = env, folder, config
        self.precision, self.validation = precision, references.validation
        self.references = references.train_pairs(env, config)
        self.accelerator = Accelerator(mixed_precision="no", cpu=env.device.type == "cpu")
        self.student = with_frozen_parts(student, config.frozen).to(self.accelerator.device)
        self.actor = copy.deepcopy(self.student).to(precision).eval().requires_grad_(False)
        self._captured = with_cuda_graphs(self.actor)
        self.averages: dict[str, WeightAverage] = {}
        if config.ema is not None:
            self.averages["average"] = WeightAverage(self.student, config.ema)
        if config.self_teacher is not None:
            self.averages["teacher"] = become_teacher(self.student, env, config.self_teacher)
        self.companions = first_companions(agent, student, env.expert).to(self.accelerator.device)
        self.optimizer = make_optimizer(
            self.student, self.companions, config, agent.companion_rate_factor
        )
        self.buffer = agent.make_buffer(env, self.accelerator.num_processes)
        self.counters = Counters()
        ewc = self._ewc() if config.ewc_weight else None
        if self.last.exists():
            self.counters = load_checkpoint(
                self.last,
                self.student,
                self.optimizer,
                self.buffer,
                self.accelerator.process_index,
                self._beside,
            )
        self.gradients = Gradients(
            student=self.student,
            companions=self.companions,
            env=env,
            config=config,
            precision=precision,
            accelerator=self.accelerator,
            references=self.references,
            ewc=ewc,
        )
        self._lengths = (
            expected_lengths(env.examples, env.special) if config.cuts_roll_ins else None
        )
        self._agent = agent
        self._asked = env.expert.queries.tokens  # before training
        self._checkpoint_clock = CheckpointClock(config.checkpoint_every)

    @property
    def agent(self) -> Agent:
        """Algorithm as the evaluations so far have adapted it."""
        return self._agent.adapted(self.counters.validation_losses)

    @property
    def evaluated(self) -> Model:
        """Model that is evaluated and kept: the average of the weights, or else the student."""
        average = self.averages.get("average")
        return self.student if average is None else average.model

    @property
    def _beside(self) -> dict[str, nn.Module]:
        """Modules of a checkpoint beside the student, by name."""
        averages = {name: average.model for name, average in self.averages.items()}
        return {**averages, "companions": self.companions}

    @property
    def last(self) -> Path:
        """Path of the checkpoint to resume from."""
        return self.folder / LAST

    @property
    def best(self) -> Path:
        """Path of the weights that were best on validation."""
        return self.folder / BEST

    def _ewc(self) -> EWC:
        """Return the anchor of the student as it was given, made once and kept in the folder."""
        path, config = self.folder / ANCHOR, self.config
        start, rows = time.perf_counter(), config.batch_size // config.accumulate
        with self.accelerator.main_process_first():
            if not path.exists():
                save_atomically(
                    path, ewc_tensors(self.student, self.references, rows, config.seed), {}
                )
        self.counters.seconds += time.perf_counter() - start
        return EWC.of(load_file(path, str(self.env.device)))

    def train(
        self,
        evaluate: Callable[[Model], float],
        log: LogFn,
        metric: str = "bleu",
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> Counters:
        """Run to the last update, from the last checkpoint if there is one.

        The weights with the best score are kept. Of those with the same score it is the ones with
        the lower loss on the validation references, and of those the later ones.

        Args:
            evaluate: score of a model on validation, where larger is better.
            log: called with the number of the update and its figures.
                Of several processes, only the main one calls these two.
            metric: name of the score among the figures.
            is_stopping: asked after each rollout's updates; True to stop all processes there.

        Raises:
            TrainingStopped: `is_stopping` said so; a checkpoint has been written.
            TrainingError: the loss or the gradient is not finite; nothing has been saved over the
                last good checkpoint.
        """
        self._measure_start()
        for batch in self.rollouts():
            for record in self.learn(batch):
                if self.accelerator.is_main_process:
                    log(self.counters.update, record)
            if self._due():
                self._evaluate(evaluate, log, metric)
            wishes = [int(is_stopping()), int(self._checkpoint_clock.is_due())]
            asked = torch.tensor(wishes, device=self.env.device)
            stopping, due = sum_of_processes(asked, self.accelerator).tolist()
            if stopping or due:
                self._save()
            if stopping:
                raise TrainingStopped
        return self.counters

    def _measure_start(self) -> None:
        """Measure the loss before training, the first one that the agent is told."""
        if self.validation is not None and not self.counters.validation_losses:
            loss = reference_loss(self._acting(self.evaluated), self.validation)
            self.counters.validation_losses.append(loss)

    def rollouts(self) -> Iterator[LabelledBatch]:
        """Yield what `batches_per_rollout` updates learn from, from the present update on."""
        config, count = self.config, self.agent.batches_per_rollout
        lengths = example_lengths(self.env.examples, self.env.special)
        first = self.counters.update
        batches = batch_indices(
            lengths, config.batch_size, config.seed, first, texts_per_source=config.texts_per_source
        )
        while (update := self.counters.update) < config.updates:
            start, progress = time.perf_counter(), update / config.updates
            indices = torch.cat([self._share(next(batches)) for _ in range(count)])
            context = self._calibrated(self._context(indices.to(self.env.device), progress))
            batch = checked_batch(self.agent, self.agent.collect(context))
            if strength := config.prefix_weight:
                batch = with_prefix_weights(batch, context.student, self.env.expert, strength)
            self.counters.seconds += time.perf_counter() - start
            yield batch

    def _context(self, indices: Tensor, progress: float) -> Context:
        """Return the context in which the examples at `indices` are collected."""
        seed, update = self.config.seed, self.counters.update
        return Context(
            indices=indices,
            env=self.env,
            student=self._acting(self.student),
            progress=progress,
            generator=generator_for(seed, self._own("collect"), update),
            buffer=self.buffer,
            gather=self._gather,
            max_written=self._max_written(indices, progress),
        )

    def _calibrated(self, context: Context) -> Context:
        """Return `context` with the agent's constant, which is found on the first one of a run."""
        counters = self.counters
        if counters.calibration is None:
            draws = generator_for(self.config.seed, self._own("calibrate"), counters.update)
            counters.calibration = self.agent.calibrate(replace(context, generator=draws))
        return replace(context, calibration=counters.calibration)

    def _max_written(self, indices: Tensor, progress: float) -> Tensor | None:
        """Return the tokens that the student writes of the examples at `indices`, (B,) int64."""
        if self._lengths is None:
            return None
        return shares_of(self._lengths[indices], self.config.roll_in_share_at(progress))

    def _acting(self, model: Model) -> Model:
        """Return a copy of the student with the weights of `model`, to act with."""
        copy_weights(model, self.actor)
        return with_prepacked_weights(self._captured)

    def learn(self, batch: LabelledBatch) -> Iterator[Record]:
        """Make the updates that `batch` is for, each when its figures are asked for."""
        return map(self._update, self._batches(batch))

    def _share(self, indices: Tensor) -> Tensor:
        """Return this process's part of a batch."""
        return indices[self.accelerator.process_index :: self.accelerator.num_processes]

    def _own(self, purpose: str) -> str:
        """Return a name for this process's own randomness."""
        return f"{purpose} of process {self.accelerator.process_index}"

    def _batches(self, collected: LabelledBatch) -> Iterator[LabelledBatch]:
        """Yield the batch of each update, as long as there are updates left."""
        count, lengths = self.agent.batches_per_rollout, collected.trajectories.mask.sum(1)
        generator = generator_for(self.config.seed, "pool", self.counters.update)
        for rows in rows_by_length(lengths, count, generator):
            if self.counters.update < self.config.updates:
                yield collected.select(rows).trimmed(self.env.special)

    def _update(self, batch: LabelledBatch) -> Record:
        """Make one optimizer update and return its figures."""
        start, update, config = time.perf_counter(), self.counters.update, self.config
        torch.manual_seed(seed_of(config.seed, self._own("dropout"), update))
        loss, tokens, terms = self.gradients.add(self.agent, batch, update)
        trained = trained_parameters(self.optimizer)
        norm = self.accelerator.clip_grad_norm_(trained, config.clip)
        assert norm is not None, "clip_grad_norm_ returns the norm for every backend used here"
        loss_value, norm_value = torch.stack([loss, norm.to(loss.device)]).tolist()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            expert = self.env.expert if self.agent.needs_expert else None
            remedy = remedy_of_loss(batch.trajectories, self.student, expert)
            raise TrainingError(
                f"loss and gradient must be finite, got {loss_value} and {norm_value} at update "
                f"{update}; the last good checkpoint is kept, {remedy}"
            )
        rate = config.learning_rate_at(update)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        for average in self.averages.values():
            average.add(update)
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - start
        self.counters.update += 1
        self.counters.seconds += seconds
        asked, self._asked = self._asked, self.env.expert.queries.tokens
        asked = self._asked - asked  # since the last update, its rollout included
        states = batch.trajectories
        written = states.writer[states.mask].bincount(minlength=len(Writer))
        counts = torch.cat([written.new_tensor([asked]), written])
        asked, *written = sum_of_processes(counts, self.accelerator).tolist()
        self.counters.teacher_tokens += asked
        return {
            "loss": loss_value,
            **terms,
            "gradient_norm": norm_value,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
            "student_share": written[Writer.STUDENT] / tokens,
            "expert_share": written[Writer.EXPERT] / tokens,
            "teacher_tokens": self.counters.teacher_tokens,
            **self.counters.constants,
            **config.coefficients(update / config.updates),
            **self.agent.coefficients(update / config.updates),
        }

    def _gather(self, values: Tensor) -> Tensor:
        """Return the (K,) values of all processes, each of which may have another number."""
        if self.accelerator.num_processes == 1:
            return values
        return torch.cat(gather_object([values.cpu()])).to(values.device)

    def _due(self) -> bool:
        """Return whether an update of the present rollout calls for an evaluation."""
        update = self.counters.update
        every = update % self.config.evaluate_every < self.agent.batches_per_rollout
        return every or update == self.config.updates

    def _evaluate(self, evaluate: Callable[[Model], float], log: LogFn, metric: str) -> None:
        """Score the weights, keep them if they are the best so far, and write a checkpoint."""
        counters, main = self.counters, self.accelerator.is_main_process
        (figures,) = broadcast_object_list([self._figures(evaluate, metric) if main else {}])
        counters.validation.append(figures[metric])
        if "reference_loss" in figures:
            counters.validation_losses.append(figures["reference_loss"])
        if main:
            log(counters.update, figures)
            if counters.last_is_best:
                counters.best, counters.best_update = figures[metric], counters.update
                save_atomically(self.best, self.evaluated.state_dict(), {})
        self._save()

    def _save(self) -> None:
        """Write a checkpoint of all processes."""
        self._checkpoint_clock.restart()
        held = gather_object([self.buffer.state_dict()]) if self.buffer is not None else []
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.last,
                self.student,
                self.optimizer,
                self.counters,
                held,
                self._beside,
            )

    def _figures(self, evaluate: Callable[[Model], float], metric: str) -> Record:
        """Return the figures of an evaluation."""
        actor = self._acting(self.evaluated)
        figures = {metric: evaluate(actor)}
        if self.validation is not None:
            figures["reference_loss"] = reference_loss(actor, self.validation)
        return figures
