"""Runs that keep their teacher's labels: asked once a state, resumed exactly, no file left."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents import AGENTS
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKDFull, ImitKDStarFull
from textgen_agents.rollouts.schedules import Constant, Linear
from textgen_agents.seqkd import SeqKDFull
from textgen_agents.training.learner import LearnerConfig
from textgen_agents.word_kd import WordKD
from textgen_env.envs.recovery import RecoveryConfig
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.experts.kept_states import KeptTexts
from textgen_env.experts.queries import Queries
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.models.transformer import Transformer
from textgen_env.tasks.copy import CopyConfig
from textgen_env.tasks.task import encode
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import read_config
from textgen_experiments.runs.kept_labels import expected_visits, with_kept_labels
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.train import train

FILES = {"kept_labels.bin", "kept_labels.json"}


def unseen(update, record):
    """Show nothing of an update."""


@pytest.fixture
def make(tiny_task, tiny_teacher, tmp_path):
    """Make the settings of a run of three epochs, with the given agent and gigabytes."""
    save_model(tiny_teacher, tmp_path / "teacher", tiny_task.tokenizer)

    def experiment(agent=None, gigabytes=1.0):
        return Experiment(
            task=CopyConfig(8, max_length=5, num_train=64, num_validation=8, num_test=8),
            teacher=tmp_path / "teacher",
            student=RecurrentConfig(width=16),
            agent=agent or WordKD(),
            learner=LearnerConfig(updates=32, batch_size=6, accumulate=2, evaluate_every=16),
            precision="float32",
            kept_labels_gb=gigabytes,
        )

    return experiment


def weights_of(folder):
    return load_file(folder / "checkpoints" / "last.safetensors")


def figures_of(folder, name):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("agent", [WordKD(), SeqKDFull(beam_size=2), ImitKDFull(Constant(1.0))])
def test_the_teacher_is_asked_once_a_state_in_three_epochs(make, tmp_path, agent):
    for name, gigabytes in (("kept", 1.0), ("asked", 0.0)):
        train(make(agent, gigabytes), tmp_path / name, unseen)
    kept, asked = (tmp_path / name for name in ("kept", "asked"))
    torch.testing.assert_close(
        torch.tensor(figures_of(kept, "loss")), torch.tensor(figures_of(asked, "loss"))
    )
    every = read_outcome(asked).teacher_tokens_queried - figures_of(asked, "teacher_tokens")[-1]
    once = read_outcome(kept).teacher_tokens_queried - every  # without the teacher's own texts
    assert 3 * once == figures_of(asked, "teacher_tokens")[-1]
    assert figures_of(kept, "teacher_tokens")[-1] == 0


def test_no_pass_of_the_teacher_is_made_in_updates(make, tmp_path, monkeypatch):
    """Until the first evaluation, which has the teacher look at the student."""
    passes, seen, hidden = [], [], Transformer.hidden

    def count(self, source, actions):
        passes.append(len(source))
        return hidden(self, source, actions)

    monkeypatch.setattr(Transformer, "hidden", count)
    train(make(), tmp_path / "run", lambda update, record: seen.append(list(passes)))
    assert sum(seen[0]) >= 64
    assert seen[0] == seen[15]


def test_student_prefixes_are_asked_about_as_before(make, tmp_path):
    agent = ImitKDFull(Linear())
    for name, gigabytes in (("kept", 1.0), ("asked", 0.0)):
        train(make(agent, gigabytes), tmp_path / name, unseen)
    kept, asked = (tmp_path / name for name in ("kept", "asked"))
    torch.testing.assert_close(
        torch.tensor(figures_of(kept, "loss")), torch.tensor(figures_of(asked, "loss"))
    )
    few, many = (figures_of(each, "teacher_tokens")[-1] for each in (kept, asked))
    assert 0 < few < many


class Stopped(Exception):
    """A run that ends in the middle."""


@pytest.mark.parametrize("when", [0, 3, 21])
def test_a_run_that_was_stopped_goes_on_exactly(make, tmp_path, monkeypatch, when):
    """While it keeps labels, at the beginning, and after a checkpoint."""
    experiment = make(ImitKDFull(Linear()))
    train(experiment, tmp_path / "whole", unseen)
    folder = tmp_path / "stopped"

    def stop(*given):
        if not when or given[0] == when:
            assert {path.name for path in folder.iterdir()} & FILES == (FILES if when else set())
            raise Stopped

    with monkeypatch.context() as patch:
        if not when:
            patch.setattr(KeptTexts, "write", stop)
        with pytest.raises(Stopped):
            train(experiment, folder, stop)
    train(experiment, folder, unseen)
    whole, again = weights_of(tmp_path / "whole"), weights_of(folder)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    first, second = read_outcome(tmp_path / "whole"), read_outcome(folder)
    assert first.teacher_tokens_queried == second.teacher_tokens_queried
    assert not {path.name for path in folder.iterdir()} & FILES, "nothing is left behind"


def test_what_cannot_be_kept_is_asked_as_before(make, tiny_task, tiny_teacher, tmp_path):
    examples = encode(tiny_task.train, tiny_task)
    experiment, expert = make(), NeuralExpert(tiny_teacher)
    noisy = replace(experiment, task=RecoveryConfig(slip=0.1))
    assert noisy.task.env_settings["noise"] is not None
    once = replace(experiment, learner=LearnerConfig(updates=8, batch_size=8))
    for settings, given in (
        (replace(experiment, kept_labels_gb=0), expert),
        (replace(experiment, kept_labels_gb=1e-9), expert),
        (replace(experiment, agent=AGENTS["imitkd"]()), expert),
        (replace(experiment, agent=ImitKDFull(Constant(0.0))), expert),
        (noisy, expert),
        (once, expert),
        (experiment, NeuralExpert(Ensemble([tiny_teacher]))),
        (experiment, NoExpert()),
    ):
        assert with_kept_labels(settings, given, examples, tmp_path) == (given, Queries())
    assert not FILES & {path.name for path in tmp_path.iterdir()}
    more = replace(once, learner=LearnerConfig(updates=9, batch_size=8))
    assert with_kept_labels(more, expert, examples, tmp_path)[1].tokens == int(
        (examples.reference != tiny_task.tokenizer.special.pad).sum()
    )


def test_what_was_cut_short_is_made_again(make, tiny_task, tiny_teacher, tmp_path):
    examples, expert = encode(tiny_task.train, tiny_task), NeuralExpert(tiny_teacher)
    made, asked = with_kept_labels(make(), expert, examples, tmp_path)
    states = made.kept.states.clone()
    read, again = with_kept_labels(make(), expert, examples, tmp_path)
    assert again == asked, "the seconds too: nothing was asked"
    assert torch.equal(read.kept.states, states)
    del made, read
    with (tmp_path / "kept_labels.bin").open("r+b") as file:
        file.truncate(8)
    remade, at_last = with_kept_labels(make(), expert, examples, tmp_path)
    assert torch.equal(remade.kept.states, states)
    assert at_last.tokens == asked.tokens


def test_visits_are_counted_where_the_data_writes():
    learner = LearnerConfig(updates=100, batch_size=4)
    assert expected_visits(WordKD(), learner, 200) == pytest.approx(2)
    assert expected_visits(ImitKDStarFull(Constant(0.25)), learner, 200) == pytest.approx(0.5)
    assert expected_visits(ImitKDFull(Linear()), learner, 100) == pytest.approx(2.02)
    assert expected_visits(GKD(student_fraction=0.75), learner, 100) == pytest.approx(1)


@pytest.mark.parametrize("name", AGENTS)
def test_no_agent_asks_about_more_than_all(name):
    agent = AGENTS[name]()
    shares = [agent.labelled_data_share(progress) for progress in (0.0, 0.5, 1.0)]
    assert all(0 <= share <= 1 for share in shares)
    assert agent.needs_expert or not any(shares)


def test_gigabytes_below_zero_are_refused_and_whole_ones_read_back(make, tmp_path):
    with pytest.raises(ValueError, match="kept_labels_gb must be at least 0, got -1"):
        make(gigabytes=-1.0)
    train(make(gigabytes=0), tmp_path / "run", unseen)
    assert read_config(tmp_path / "run").experiment.kept_labels_gb == 0
