"""Program that saves the gradients of one update of every agent; torchrun shares it by processes.

Every process collects the whole batch alike and keeps its share of the rows, so that the batch is
the same however many processes there are. `atkd, own rows` is collected by each process alone: its
roll-ins are greedy, and only the statistic of the whole batch is shared.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gymnasium.vector import AutoresetMode
from safetensors.torch import save_file

from tests.support.updates import Log, make, no_score
from textgen_agents import AGENTS
from textgen_agents.agent import Agent
from textgen_agents.atkd import ATKD
from textgen_agents.rollouts.context import Context
from textgen_agents.training.distributed import this_process
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.copy import CopyConfig, copy_task

ROWS = 8
TASK = CopyConfig(8, min_length=2, max_length=5, num_train=64, num_validation=4, num_test=4)


@dataclass(frozen=True)
class Shared(Agent):
    """Agent that collects for `env` as `inner` does, and keeps the rows of this process."""

    inner: Agent
    env: TextGenVectorEnv

    def collect(self, context):
        process = this_process()
        generator, buffer = torch.Generator().manual_seed(0), self.inner.make_buffer(self.env)
        indices = torch.arange(ROWS)
        whole = Context(indices, self.env, context.student, 0.5, generator, buffer)
        batch = self.inner.collect(whole)
        rows = torch.arange(process.process_index, len(batch), process.num_processes)
        return batch.select(rows)

    def loss(self, batch, student, expert):
        return self.inner.loss(batch, student, expert)


def gradients(agent: Agent | None, name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Return the gradients of one update of `agent`; None for ATKD on its own rows."""
    task, process = copy_task(TASK), this_process()
    vocab_size = task.tokenizer.vocab_size
    torch.manual_seed(1)
    config = TransformerConfig(vocab_size, 16, num_heads=2, feed_forward=32, dropout=0.0)
    expert = NeuralExpert(Transformer(config).eval())
    torch.manual_seed(2)
    student = Recurrent(RecurrentConfig(vocab_size, 16, 1, 1, dropout=0.0))

    def env_of(slots: int) -> TextGenVectorEnv:
        mode = AutoresetMode.DISABLED
        return TextGenVectorEnv(task, slots, expert=expert, reward=no_reward, autoreset_mode=mode)

    own = env_of(ROWS // process.num_processes)
    learner = Learner(
        ATKD(student_fraction=1.0) if agent is None else Shared(agent, env_of(ROWS)),
        student,
        env=own,
        folder=folder / name,
        config=LearnerConfig(updates=1, batch_size=ROWS, warmup=1, clip=1e9, seed=3),
        precision=torch.float32,
    )
    seen: dict[str, torch.Tensor] = {}
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in student.named_parameters()})
    )
    learner.train(no_score, Log())
    return seen


def main() -> None:
    """Write `NAME.safetensors` for every agent to the folder that the first argument names."""
    torch.set_num_threads(1)
    output = Path(sys.argv[1])
    agents: dict[str, Agent | None] = {name: make(name) for name in AGENTS}
    for name, agent in agents.items():
        if "batches_per_rollout" in vars(agent):
            agents[name] = replace(agent, batches_per_rollout=1)
    with tempfile.TemporaryDirectory() as folder:
        for name, agent in {**agents, "atkd, own rows": None}.items():
            found = gradients(agent, name, Path(folder))
            if this_process().is_main_process:
                save_file(found, output / f"{name}.safetensors")


if __name__ == "__main__":
    main()
