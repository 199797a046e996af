"""A teacher that is the student itself: a moving average of its weights that reads more than it.

The student learns to write without the richer view what it would write with it. The average moves
with every update, so that no answer may be kept: buffers of labels, and texts that a teacher writes
before training, are for teachers that stay as they are.
"""

from textgen_agents.agent import Agent
from textgen_agents.training.averaging import WeightAverage
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.models.storage import Model


def check_self_taught(agent: Agent, decay: float) -> None:
    """Raise unless `agent` can learn from an average with this decay.

    Raises:
        ValueError: it asks no teacher, or keeps texts that a teacher has written before training.
    """
    name = type(agent).__name__
    if not agent.needs_expert:
        raise ValueError(
            f"self_teacher must be left out for {name}, which asks no teacher, got {decay}"
        )
    if type(agent).prepare is not Agent.prepare:
        raise _kept(name, decay)


def check_self_teacher(agent: Agent, env: TextGenVectorEnv, decay: float) -> None:
    """Raise unless the student can be its own teacher in this environment.

    Args:
        agent: the algorithm.
        env: the environment that rollouts step.
        decay: of the average.

    Raises:
        ValueError: there is another teacher, its answers are kept in a buffer, or it would read
            what the student reads.
    """
    if agent.make_buffer(env) is not None:
        raise _kept(type(agent).__name__, decay)
    if not isinstance(env.expert, NoExpert):
        raise ValueError(
            f"self_teacher must be left out where there is a teacher, got {decay}: leave one out"
        )
    if env.examples.expert_source is None:
        raise ValueError(
            "self_teacher must read more than the student, got examples without a view of the "
            "expert's: add expert_source to them"
        )


def become_teacher(student: Model, env: TextGenVectorEnv, decay: float) -> WeightAverage:
    """Return a moving average of the student, which the environment asks from now on.

    Args:
        student: the model that is trained, on the environment's device.
        env: its `expert` is replaced by the average, which reads the expert's view.
        decay: of the average, in [0, 1); at 0 the teacher is the student as it is.

    Source: Tarvainen and Valpola 2017, arXiv:1703.01780, for a student's average as its teacher.
    """
    average = WeightAverage(student, decay)
    env.expert = NeuralExpert(average.model)
    return average


def _kept(name: str, decay: float) -> ValueError:
    return ValueError(
        f"self_teacher must be left out for {name}, which keeps what its teacher says, got "
        f"{decay}: choose an agent that asks anew (imitkd_full, gkd)"
    )
