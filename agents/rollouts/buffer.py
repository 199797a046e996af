"""Buffer of labelled trajectories of bounded size, in which the oldest rows are replaced.

An agent may learn from rows drawn from here in place of those that were just written. Labels are
stored with the trajectories, so that the teacher is asked about a stored state only once.
Everything lies on the device, in tensors that are made at the first rollout and written into from
then on. Draws are uniform: no row is preferred for its age or its loss.
"""

from collections.abc import Mapping
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.losses.labels import Label, LabelledBatch
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.types import Trajectories, tensors

LOG_PROB = "behavior_log_prob"  # kept from the first row on that has one
STATES = tuple(
    field.name for field in fields(Trajectories) if field.name not in ("weight", LOG_PROB)
)
ROWS_PER_QUERY = 64  # that the expert is asked about together


def check_capacity(capacity: int) -> None:
    """Raise `ValueError` unless a buffer can have so many rows."""
    if capacity < 1:
        raise ValueError(
            f"capacity must be at least 1, got {capacity}: use thousands, or imitkd, which keeps "
            "nothing"
        )


class Buffer:
    """Store of the last `capacity` rows that were added, or of one process's share of them.

    Args:
        env: the environment that the rows are collected in; gives their widths and the device.
        capacity: rows.
        label: what the expert is asked and what is kept.
        processes: processes that share `capacity` evenly.

    Raises:
        ValueError: `capacity` below the rows that are collected together.
    """

    def __init__(
        self, env: TextGenVectorEnv, *, capacity: int, label: Label, processes: int = 1
    ) -> None:
        if capacity < env.num_envs * processes:
            raise ValueError(
                f"capacity must be at least {env.num_envs * processes}, the rows that are "
                f"collected together, got {capacity}: use a larger one, or a smaller pool or batch"
            )
        self.capacity, self.label = capacity // processes, label
        self.special, self.device, self.max_steps = env.special, env.device, env.max_steps
        self.widths = {name: tensor.shape[1] for name, tensor in tensors(env.examples).items()}
        one_view = env.examples.expert_source is None
        self.states = tuple(n for n in STATES if not (one_view and n == "expert_source"))
        self.added = 0  # rows in all, replaced ones included
        self.stored: dict[str, Tensor] = {}  # (capacity, width, ...) each

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def full(self) -> bool:
        """True if the next row replaces the oldest."""
        return self.added >= self.capacity

    def add(self, batch: LabelledBatch, expert: Expert) -> None:
        """Store the rows of `batch` with their labels; `expert` is asked for missing ones.

        Rows of similar length are asked about together, since one long text widens all.
        """
        by_length = batch.trajectories.mask.sum(1).argsort(stable=True)
        for rows in by_length.split(ROWS_PER_QUERY):
            part = batch.select(rows).trimmed(self.special)
            slots = (self.added + rows) % self.capacity
            for name in self.states:
                self._store(name, getattr(part.trajectories, name), slots)
            if part.trajectories.behavior_log_prob is not None or LOG_PROB in self.stored:
                self._store(LOG_PROB, part.trajectories.action_log_prob, slots)
            for name, answer in self.label.ask(part.trajectories, part.expert(expert)).items():
                self._store(name, answer, slots)
        self.added += len(batch)

    def latest(self, count: int) -> LabelledBatch:
        """Return the `count` rows that were added last, in that order."""
        return self._take(torch.arange(self.added - count, self.added) % self.capacity)

    def draw(self, count: int, generator: torch.Generator) -> LabelledBatch:
        """Draw `count` rows at random, each once before any comes twice.

        Args:
            count: any number, also above that of the rows.
            generator: on the CPU.
        """
        order = torch.randperm(len(self), generator=generator)
        return self._take(order[torch.arange(count) % len(self)])

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that `load_state_dict` needs, on the CPU."""
        rows = {name: stored.cpu() for name, stored in self.stored.items()}
        return {"added": torch.tensor(self.added), **rows}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the contents that `state_dict` returned for a buffer of the same settings.

        Raises:
            KeyError: `state` is not a buffer's.
            ValueError: `state` has another capacity.
        """
        self.added = int(state["added"])
        unused = {"added", *STATES} - {*self.states}
        stored = {name: rows for name, rows in state.items() if name not in unused}
        for rows in stored.values():
            if len(rows) != self.capacity:
                raise ValueError(
                    f"the buffer must have a capacity of {self.capacity} rows, got {len(rows)}: "
                    "resume with as many processes as before"
                )
        self.stored = {name: rows.to(self.device) for name, rows in stored.items()}

    def _store(self, name: str, rows: Tensor, slots: Tensor) -> None:
        """Write `rows`, (K, L, ...), into their slots, padded to the width of the store."""
        if name not in self.stored:
            width = self.widths.get(name, self.max_steps)
            self.stored[name] = rows.new_zeros((self.capacity, width, *rows.shape[2:]))
        stored = self.stored[name]
        sides = (0, 0) * (rows.dim() - 2) + (0, stored.shape[1] - rows.shape[1])
        token = name in STATES and name not in ("writer", "mask")
        stored[slots] = F.pad(rows, sides, value=self.special.pad if token else 0)

    def _take(self, slots: Tensor) -> LabelledBatch:
        """Return the rows in these slots."""
        rows = {name: stored[slots.to(self.device)] for name, stored in self.stored.items()}
        states = [name for name in (*self.states, LOG_PROB) if name in rows]
        trajectories = Trajectories(**{name: rows.pop(name) for name in states})
        return LabelledBatch(trajectories, rows).trimmed(self.special)
