"""Labels of a run's data texts, kept on disk, so that a local teacher is asked about each once.

They are made before training, in a fixed order: what a run reads does not depend on where it was
stopped. Answers of servers are kept by their own cache.
"""

import json
import time
from dataclasses import asdict
from math import ceil
from pathlib import Path

from textgen_agents.agent import Agent
from textgen_agents.training.config import LearnerConfig
from textgen_env.experts.expert import Expert, NeuralExpert
from textgen_env.experts.kept_states import KeptStatesExpert, KeptTexts
from textgen_env.experts.queries import Queries
from textgen_env.models.hidden_states import HiddenStates, with_hidden_states
from textgen_env.types import Examples
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import write_text
from textgen_experiments.runs.progress import progress, tell

HIDDEN_STATES = "kept_labels.bin"  # the teacher's hidden states
DONE = "kept_labels.json"  # the queries for them, written when they are complete
BYTES_PER_GB = 1e9


def with_kept_labels(
    experiment: Experiment, expert: Expert, examples: Examples, folder: Path
) -> tuple[Expert, Queries]:
    """Return `expert` with its answers about the data's texts kept, where that saves queries.

    Kept are answers of a local teacher with hidden states, asked by an agent that comes back to
    the same texts, on data that is written as it is.

    Args:
        experiment: settings of the run.
        expert: teacher that the run learns from.
        examples: what it learns on, with the texts of the data.
        folder: folder of the run; the files in it are made if need be.

    Returns:
        The expert, and the queries for what it keeps.

    Raises:
        WriteError: the file cannot be written.
    """
    if not isinstance(expert, NeuralExpert) or not _saves_queries(experiment, len(examples)):
        return expert, Queries()
    model = with_hidden_states(expert.model)
    if model is None:
        return expert, Queries()
    texts = KeptTexts.that_fit(
        examples, model, expert.special, BYTES_PER_GB * experiment.kept_labels_gb
    )
    if not len(texts):
        return expert, Queries()
    if not _is_complete(texts, folder):
        _ask_about_all(texts, model, experiment.learner, folder)
    asked = Queries(**json.loads((folder / DONE).read_text(encoding="utf-8")))
    return KeptStatesExpert(expert, texts.read(folder / HIDDEN_STATES)), asked


def expected_visits(agent: Agent, learner: LearnerConfig, num_examples: int) -> float:
    """Return how often a run asks the teacher about each text of the data, on average."""
    updates = learner.updates
    share = sum(agent.labelled_data_share(update / updates) for update in range(updates))
    return share * learner.batch_size / num_examples


def discard_kept_labels(folder: Path) -> None:
    """Remove what the run in `folder` kept, which nothing reads once it is finished."""
    for name in (DONE, HIDDEN_STATES):
        (folder / name).unlink(missing_ok=True)


def _saves_queries(experiment: Experiment, num_examples: int) -> bool:
    """Return whether the agent asks about the same states more than once."""
    noisy = experiment.task.env_settings.get("noise") is not None
    return not noisy and expected_visits(experiment.agent, experiment.learner, num_examples) > 1


def _is_complete(texts: KeptTexts, folder: Path) -> bool:
    """Return whether a run in `folder` has written the states of all texts before."""
    path = folder / HIDDEN_STATES
    written = path.stat().st_size if path.exists() else 0
    return (folder / DONE).exists() and written == texts.num_bytes


def _ask_about_all(
    texts: KeptTexts, model: HiddenStates, learner: LearnerConfig, folder: Path
) -> None:
    """Ask the teacher about all texts and write its states, then the queries for them."""
    start, rows = time.perf_counter(), ceil(learner.batch_size / learner.accumulate)
    passes = ceil(len(texts) / rows)
    with progress("the teacher's labels are kept", passes) as advance:
        texts.write(folder / HIDDEN_STATES, model, rows, advance)
    asked = Queries(passes, texts.num_states, time.perf_counter() - start)
    write_text(folder / DONE, json.dumps(asdict(asked)) + "\n")
    tell(
        f"kept labels: the teacher's hidden states of {len(texts):,} texts, "
        f"{texts.num_bytes / 1e6:,.1f} MB in {folder / HIDDEN_STATES}",
    )
