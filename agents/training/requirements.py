"""Requirements of a run on its parts, which are checked before anything is trained."""

from textgen_agents.agent import Agent
from textgen_agents.training.config import LearnerConfig
from textgen_agents.training.self_teacher import check_self_teacher
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.models.storage import Model


def check_requirements(
    agent: Agent, student: Model, env: TextGenVectorEnv, config: LearnerConfig
) -> None:
    """Raise unless the parts of a run fit each other.

    Raises:
        ExpertError: the agent needs more than the environment's expert gives.
        ValueError: the student cannot be its own teacher, references are missing, more tokens are
            asked for than there are, the student's vocabulary is not the environment's, or a
            setting is about texts of the student that the agent does not have.
    """
    agent.check_expert(env.expert)
    config.check_agent(agent)
    if config.self_teacher is not None:
        check_self_teacher(agent, env, config.self_teacher)
    agent.check_examples(env.examples, env.special)
    config.check_expert(env.expert)
    if student.vocab_size != env.vocab_size:
        raise ValueError(
            f"student must have the environment's vocabulary of {env.vocab_size} tokens, got one "
            f"of {student.vocab_size}: build it for that tokenizer; a teacher with another one can "
            "be learned from by its texts (imitkd, seqkd, seqinter)"
        )
