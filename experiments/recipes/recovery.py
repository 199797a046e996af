"""Success rate against text length where the optimum is known: behavior cloning beside ImitKD.

References never show how a wrong word is undone. A student that clones them succeeds as often as
nothing slips, a probability that falls geometrically with the length. A student that is corrected
on its own prefixes learns to undo. Both are shown beside the closed forms of
`textgen_env/envs/recovery.py`. A stopped experiment starts over, since all of it takes minutes.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from gymnasium.vector import AutoresetMode

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKD
from textgen_agents.mle import MLE
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.bounds import check_at_least
from textgen_env.envs.recovery import (
    SPECIAL_TOKENS,
    UNDO,
    RecoveryConfig,
    Slips,
    known_success,
    recovered,
    recovery_policy,
    recovery_task,
)
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.generation.decoding import next_action
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.sequence_model import SequenceModel
from textgen_env.models.storage import Model
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.task import TextTask
from textgen_env.types import Examples
from textgen_experiments.evaluation.results import RESULTS, write_json
from textgen_experiments.evaluation.tables import print_table
from textgen_experiments.runs.experiment import agent_name
from textgen_experiments.runs.factories import build_model, learning_env
from textgen_experiments.runs.progress import progress, tell
from textgen_experiments.runs.records import to_json

COMPARED_AGENTS = (MLE(), ImitKD())
AGENT_STYLES = {"mle": ("#D55E00", "s"), "imitkd": ("#0072B2", "o")}
"""Agent -> color and marker; the colors are Okabe and Ito's, for all kinds of color vision."""
STUDENT = RecurrentConfig(width=64, num_encoder_layers=1, num_decoder_layers=2, dropout=0.0)
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Number of seeds -> the 97.5 % quantile of Student's t with one degree of freedom less."""


@dataclass(frozen=True)
class RecoveryOptions:
    """Train students to copy with a slippery pen, by cloning the data or by ImitKD; compare them.

    Attributes:
        output: folder of `results.json` and `recovery.png`.
        seeds: students of each agent, 2 to 8.
        episodes: episodes of each student at each length.
        task: the texts and the slips.
        learner: settings of all trainings, evaluated at the end only; its seed is the first one.
    """

    output: Path = Path("runs/recovery")
    seeds: int = 5
    episodes: int = 500
    task: RecoveryConfig = field(
        default_factory=lambda: RecoveryConfig(
            CopyConfig(num_words=5, min_length=1, max_length=8, num_train=20000), slip=0.2
        )
    )
    learner: LearnerConfig = field(
        default_factory=lambda: LearnerConfig(updates=1200, learning_rate=1e-2, warmup=50)
    )

    def __post_init__(self) -> None:
        if self.seeds not in T_QUANTILES:
            raise ValueError(f"seeds must be 2 to {max(T_QUANTILES)}, got {self.seeds}")
        check_at_least(self, episodes=1)


@dataclass(frozen=True)
class RecoveryRow:
    """Success of one agent's students on texts of one length.

    Attributes:
        agent: name of the agent.
        length: words of the texts.
        success: mean success rate of the students.
        low: lower end of its 95 % interval over seeds.
        high: upper end of the interval.
        by_seed: success rate of each student, the share of episodes that end with the reference.
        never_undoing: known success rate of a policy that writes the reference and never undoes.
        optimum: known success rate of the best policy.
    """

    agent: str
    length: int
    success: float
    low: float
    high: float
    by_seed: list[float]
    never_undoing: float
    optimum: float


def recovery(options: RecoveryOptions) -> None:
    """Train, print the table, write `results.json` and plot `recovery.png`."""
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more threads are slower with such a small student
    rows = recovery_rows(options)
    print_recovery(rows)
    content = {"options": to_json(options), "rows": [asdict(row) for row in rows]}
    write_json(options.output / RESULTS, content)
    draw_recovery(rows, options.output / "recovery.png")
    tell(f"written to {options.output}")


def recovery_rows(
    options: RecoveryOptions, agents: Sequence[Agent] = COMPARED_AGENTS
) -> list[RecoveryRow]:
    """Train and test the students of `agents`; return a row for each agent and length."""
    config, task = options.task, recovery_task(options.task)
    lengths = range(config.copy.min_length, config.copy.max_length + 1)
    tests = [make_test_env(task, config.slips, length, options.episodes) for length in lengths]
    records = len(agents) * options.seeds * (options.learner.updates + 1)
    rows = []
    with progress("training", records) as advance:
        for agent in agents:
            by_student = []
            for number in range(options.seeds):
                learner = replace(options.learner, seed=options.learner.seed + number)
                student = train_student(agent, task, config.slips, learner, advance)
                by_student.append([success(student, env, learner.seed) for env in tests])
            by_length = zip(*by_student, strict=True)
            rows += [
                recovery_row(agent, task, config.slips, length, by_seed)
                for length, by_seed in zip(lengths, by_length, strict=True)
            ]
    return rows


def train_student(
    agent: Agent,
    task: TextTask,
    slips: Slips,
    learner: LearnerConfig,
    advance: Callable[[], None],
) -> Model:
    """Train and return a student; `advance` is called for every update and at the end."""
    vocab_size = task.tokenizer.vocab_size
    expert = ScriptedExpert(recovery_policy, vocab_size)
    env = learning_env(task, agent.batches_per_rollout * learner.batch_size, expert, noise=slips)
    env.reset(seed=learner.seed)
    student = build_model(replace(STUDENT, vocab_size=vocab_size), learner.seed)
    at_the_end = replace(learner, evaluate_every=learner.updates)
    with TemporaryDirectory() as folder:
        trainer = Learner(
            agent,
            student,
            env=env,
            folder=Path(folder),
            config=at_the_end,
            precision=torch.float32,
        )
        trainer.train(lambda model: 0.0, lambda update, record: advance())
    return trainer.evaluated.eval()


def make_test_env(task: TextTask, slips: Slips, length: int, episodes: int) -> TextGenVectorEnv:
    """Return an environment with a slot per episode, each with a random text of `length` words.

    There are few short texts, and students have seen them; they have seen almost none of the rest.
    """
    vocab_size, generator = task.tokenizer.vocab_size, torch.Generator().manual_seed(length)
    words = torch.randint(UNDO + 1, vocab_size, (episodes, length), generator=generator)
    texts = F.pad(words, (0, 1), value=SPECIAL_TOKENS.end)
    return TextGenVectorEnv(
        task,
        episodes,
        examples=Examples(texts, texts),
        reward=recovered,
        noise=slips,
        autoreset_mode=AutoresetMode.DISABLED,
    )


@torch.no_grad()
def success(student: SequenceModel, env: TextGenVectorEnv, seed: int) -> float:
    """Return the share of episodes that the student, decoding greedily, ends with the reference.

    Args:
        student: a student in evaluation mode.
        env: environment in autoreset mode DISABLED, with an example for each slot.
        seed: seed of the slips.
    """
    rows = torch.arange(env.num_envs)
    env.reset(seed=seed, options={"indices": rows})
    cache = student.start(env.examples.source, env.max_steps)
    previous, total = torch.full_like(rows, SPECIAL_TOKENS.start), 0.0
    for _ in range(env.max_steps):
        logits, cache = student.step(previous, cache)
        actions = next_action(logits, special=SPECIAL_TOKENS).masked_fill(
            env.state.done, SPECIAL_TOKENS.pad
        )
        _, rewards, _, _, info = env.step(actions)
        previous, total = info["written"], total + float(rewards.sum())
    return total / env.num_envs


def recovery_row(
    agent: Agent, task: TextTask, slips: Slips, length: int, by_seed: Sequence[float]
) -> RecoveryRow:
    """Return mean and interval of the students' success rates, beside the known ones.

    The interval is Student's: mean +- t s / sqrt(n), with s the standard deviation of the n rates.
    """
    mean = statistics.mean(by_seed)
    margin = T_QUANTILES[len(by_seed)] * statistics.stdev(by_seed) / math.sqrt(len(by_seed))
    return RecoveryRow(
        agent=agent_name(agent),
        length=length,
        success=mean,
        low=mean - margin,
        high=mean + margin,
        by_seed=list(by_seed),
        never_undoing=known_success(length, length + 1, slips.error),
        optimum=known_success(length, task.max_target_length, slips.error),
    )


def print_recovery(rows: Sequence[RecoveryRow]) -> None:
    """Print a row for each agent and length."""
    cells = [
        (
            row.agent,
            str(row.length),
            f"{row.success:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.never_undoing:.3f}",
            f"{row.optimum:.3f}",
        )
        for row in rows
    ]
    print_table(
        "share of texts written without a mistake left, 95 % intervals over seeds",
        ("agent", "words", "success", "interval", "never undoing", "optimum"),
        cells,
    )


def draw_recovery(rows: Sequence[RecoveryRow], path: Path) -> None:
    """Plot success against length, with intervals as bands and the known rates as lines."""
    from matplotlib.figure import Figure  # slow to import, and other commands do not need it

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lengths = sorted({row.length for row in rows})
    known = rows[: len(lengths)]  # the same beside every agent
    axes.plot(lengths, [row.optimum for row in known], "k--", label="optimum")
    for agent, (color, marker) in AGENT_STYLES.items():
        own = [row for row in rows if row.agent == agent]
        low, high = [row.low for row in own], [row.high for row in own]
        axes.fill_between(lengths, low, high, color=color, alpha=0.25, linewidth=0)
        axes.plot(lengths, [row.success for row in own], color=color, marker=marker, label=agent)
    axes.plot(lengths, [row.never_undoing for row in known], "k:", label="never undoing")
    axes.set(xlabel="words of the text", ylabel="share of texts right in the end", ylim=(0, 1.02))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
