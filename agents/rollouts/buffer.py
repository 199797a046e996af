"""A bounded store of what was collected, with the expert's answers about it; the oldest go first.

What a learner learns from need not be what was just written: it may be drawn from here. Answers
are stored with the trajectories, so that the teacher is asked about a stored state only once.
Everything lies on the device, in tensors that are made at the first rollout and written into from
then on. Draws are all alike: nothing is preferred for its age or its loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from textgen_agents.losses.labels import Answers, Label, RecordedExpert
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import Expert
from textgen_env.types import SpecialTokens, Trajectories, tensors

STATES = tuple(field.name for field in fields(Trajectories))
ASKED = 64  # rows that the expert is asked about at a time


@dataclass(frozen=True)
class LabelledBatch:
    """Trajectories to learn from, with the expert's answers as far as they are known.

    Attributes:
        trajectories: B of them.
        answers: (B, T, ...) each, by name; none where the expert is still to be asked.
    """

    trajectories: Trajectories
    answers: Answers = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trajectories)

    def select(self, index: Tensor) -> Self:
        """The rows at `index`, (K,) int64, in that order."""
        answers = {name: part[index] for name, part in self.answers.items()}
        return type(self)(self.trajectories.select(index), answers)

    def trimmed(self, special: SpecialTokens) -> Self:
        """The rows without the columns that are padding in all of them."""
        trajectories = self.trajectories.trimmed(special)
        width = trajectories.mask.shape[1]
        return type(self)(trajectories, {name: a[:, :width] for name, a in self.answers.items()})

    def expert(self, asked: Expert) -> Expert:
        """Whom a loss asks about these trajectories: `asked`, unless the answers are here."""
        return RecordedExpert(asked.special, self.answers) if self.answers else asked


class Buffer:
    """The last `capacity` rows that were added, or one process's share of them.

    Args:
        env: the environment that they are collected in; gives their widths and the device.
        capacity: rows.
        label: what is kept of the expert's answers.
        processes: among which `capacity` is shared out; this is the share of one.

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
        self.added = 0  # rows in all, those that had to go included
        self.stored: dict[str, Tensor] = {}  # (capacity, width, ...) each

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def full(self) -> bool:
        """Whether the next row takes the place of the oldest."""
        return self.added >= self.capacity

    def add(self, experience: LabelledBatch, expert: Expert) -> None:
        """Store trajectories with their answers; `expert` is asked for those that are missing.

        In parts of similar length, because one long text widens its whole part.
        """
        by_length = experience.trajectories.mask.sum(1).argsort(stable=True)
        for rows in by_length.split(ASKED):
            part = experience.select(rows).trimmed(self.special)
            slots = (self.added + rows) % self.capacity
            for name in self.states:
                self._store(name, getattr(part.trajectories, name), slots)
            for name, answer in self.label.ask(part.trajectories, part.expert(expert)).items():
                self._store(name, answer, slots)
        self.added += len(experience)

    def latest(self, count: int) -> LabelledBatch:
        """The `count` rows that were added last, in that order."""
        return self._take(torch.arange(self.added - count, self.added) % self.capacity)

    def draw(self, count: int, generator: torch.Generator) -> LabelledBatch:
        """`count` rows at random, each once before any comes twice.

        Args:
            count: any number, also above that of the rows.
            generator: on the CPU.
        """
        order = torch.randperm(len(self), generator=generator)
        return self._take(order[torch.arange(count) % len(self)])

    def state_dict(self) -> dict[str, Tensor]:
        """All that `load_state_dict` needs, on the CPU."""
        rows = {name: stored.cpu() for name, stored in self.stored.items()}
        return {"added": torch.tensor(self.added), **rows}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Be as the buffer was that gave `state`, one with the same settings.

        Raises:
            KeyError: `state` is not a buffer's.
            ValueError: it is of one with room for another number of rows.
        """
        self.added = int(state["added"])
        unused = {"added", *STATES} - {*self.states}
        stored = {name: rows for name, rows in state.items() if name not in unused}
        for rows in stored.values():
            if len(rows) != self.capacity:
                raise ValueError(
                    f"a buffer of {len(rows)} rows, this one has room for {self.capacity}: go on "
                    "with as many processes as before"
                )
        self.stored = {name: rows.to(self.device) for name, rows in stored.items()}

    def _store(self, name: str, rows: Tensor, slots: Tensor) -> None:
        """Write `rows`, (K, L, ...), into their slots, with padding after them."""
        if name not in self.stored:
            width = self.widths.get(name, self.max_steps)
            self.stored[name] = rows.new_zeros((self.capacity, width, *rows.shape[2:]))
        stored = self.stored[name]
        sides = (0, 0) * (rows.dim() - 2) + (0, stored.shape[1] - rows.shape[1])
        token = name in STATES and name not in ("writer", "mask")
        stored[slots] = F.pad(rows, sides, value=self.special.pad if token else 0)

    def _take(self, slots: Tensor) -> LabelledBatch:
        """The rows in these slots."""
        rows = {name: stored[slots.to(self.device)] for name, stored in self.stored.items()}
        trajectories = Trajectories(**{name: rows.pop(name) for name in self.states})
        return LabelledBatch(trajectories, rows).trimmed(self.special)
