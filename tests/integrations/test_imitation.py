"""Test of imitation's DAgger on the adapter with a neural expert, run by `make integrations`."""

import numpy as np
import pytest
import torch
from imitation.algorithms.bc import BC
from imitation.algorithms.dagger import SimpleDAggerTrainer
from imitation.util import logger as imitation_logger

from textgen_agents.integrations.sb3_ppo import SequenceModelPolicy
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.integrations.sb3 import ExpertPolicy, FlatObservation, SB3VecEnv


@pytest.mark.filterwarnings("ignore:keys will default to True in jsonpickle")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_dagger_brings_the_student_to_its_expert(
    tiny_task, make_table_model, make_student, tmp_path
):
    rng = np.random.default_rng(0)
    log = imitation_logger.configure(tmp_path / "log", [])  # imitation never closes its log files
    expert = NeuralExpert(make_table_model(tiny_task, 3))
    venv = FlatObservation(SB3VecEnv(TextGenVectorEnv(tiny_task, 8)))
    venv.seed(0)
    spaces, width = (venv.observation_space, venv.action_space), tiny_task.max_source_length
    teacher = ExpertPolicy(expert, *spaces, max_source_length=width)
    student = SequenceModelPolicy(
        *spaces, lambda remaining: 1e-3, student=make_student(), max_source_length=width
    )
    cloner = BC(
        observation_space=spaces[0],
        action_space=spaces[1],
        rng=rng,
        policy=student,
        custom_logger=log,
        optimizer_kwargs={"lr": 1e-2},
    )
    trainer = SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=tmp_path,
        expert_policy=teacher,
        rng=rng,
        bc_trainer=cloner,
        custom_logger=log,
    )
    shown = venv.reset()
    torch.manual_seed(0)

    def agreement():
        return np.mean(student.predict(shown, deterministic=True)[0] == teacher.predict(shown)[0])

    before = agreement()
    trainer.train(
        1500, bc_train_kwargs={"n_epochs": 4, "log_rollouts_venv": None, "progress_bar": False}
    )
    assert trainer.round_num >= 2, "the student must have written as well"
    assert agreement() > max(before, 0.7)
