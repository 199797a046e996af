"""Tests of on-policy distillation by TRL and here: same loss and gradient, timed updates."""

import pytest
import torch

from textgen_agents.losses.labels import LabelledBatch
from textgen_env.types import Examples, Trajectories, Writer

pytest.importorskip("trl")  # in the extra `bench`: make peers-test
from textgen_experiments.benchmarks.peers.gkd import gkd_updates, save_pair
from textgen_experiments.benchmarks.peers.models import Size
from textgen_experiments.benchmarks.peers.trl import (
    TEACHER_WEIGHT,
    DistillationTrainerUpdates,
    GKDTrainerUpdates,
)
from textgen_experiments.benchmarks.peers.updates import LearnerUpdates

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL warns
SIZE = Size(
    vocab_size=90,
    width=64,
    teacher_layers=2,
    student_layers=1,
    batch_size=12,
    source_tokens=5,
    max_steps=30,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    save_pair(folder, SIZE)
    return folder


@pytest.fixture(scope="module")
def trl(folder):
    return GKDTrainerUpdates(folder, SIZE, bfloat16=False)


def written_by_trl(trl):
    """Return the inputs of TRL's loss, and the same texts as trajectories."""
    torch.manual_seed(0)
    trainer, inputs = trl.trainer, trl.inputs()
    tokens, mask, labels = trainer.generate_on_policy_outputs(
        trainer.model, inputs, trainer.generation_config
    )
    inputs |= {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    prompts, actions = tokens[:, : SIZE.source_tokens], tokens[:, SIZE.source_tokens :]
    ends = torch.full_like(actions[:, :1], 2)
    counted = labels[:, SIZE.source_tokens :] != -100
    examples = Examples(source=torch.cat([prompts[:, 1:], ends], 1), reference=ends)
    writer = torch.full_like(actions, Writer.STUDENT)
    return inputs, Trajectories.of(examples, actions.where(counted, 0), writer, counted)


def gradients(loss, model):
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("teacher_weight", [0.0, 0.1, TEACHER_WEIGHT, 1.0])
def test_loss_and_gradient_of_the_same_tokens_are_trls(folder, trl, teacher_weight):
    from textgen_agents.gkd import GKD
    from textgen_env.experts.expert import NeuralExpert
    from textgen_env.models.storage import load_model

    inputs, trajectories = written_by_trl(trl)
    counts = trajectories.mask.sum(1)
    assert counts.min() < counts.max(), "the test wants texts that end"
    trl.trainer.beta = teacher_weight
    expected = trl.trainer.compute_loss(trl.trainer.model, inputs)
    student, teacher = load_model(folder / "student"), load_model(folder / "teacher")
    agent = GKD(student_fraction=1.0, teacher_weight=teacher_weight)
    loss = agent.loss(LabelledBatch(trajectories), student, NeuralExpert(teacher))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    theirs = gradients(expected, trl.trainer.model)
    for name, gradient in gradients(loss, student.model).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-7, msg=name)


@pytest.mark.parametrize("teacher_weight", [0.1, TEACHER_WEIGHT])
def test_loss_of_the_trainer_with_chunks_is_ours(folder, teacher_weight):
    from textgen_agents.gkd import GKD
    from textgen_env.experts.expert import NeuralExpert
    from textgen_env.models.storage import load_model

    updates = DistillationTrainerUpdates(folder, SIZE, bfloat16=False)
    trainer = updates.trainer
    trainer.beta = teacher_weight
    inputs = trainer._prepare_inputs(updates.inputs())
    expected = trainer.compute_loss(trainer.model, inputs)
    counted, actions = inputs["completion_mask"].bool(), inputs["completion_ids"]
    prompts = inputs["prompt_ids"]
    ends = torch.full_like(actions[:, :1], 2)
    examples = Examples(source=torch.cat([prompts[:, 1:], ends], 1), reference=ends)
    writer = torch.full_like(actions, Writer.STUDENT)
    trajectories = Trajectories.of(examples, actions.where(counted, 0), writer, counted)
    student, teacher = load_model(folder / "student"), load_model(folder / "teacher")
    agent = GKD(student_fraction=1.0, teacher_weight=teacher_weight)
    loss = agent.loss(LabelledBatch(trajectories), student, NeuralExpert(teacher))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_side_makes_updates_and_times_their_parts(tmp_path, precision):
    sides = gkd_updates(tmp_path, SIZE, precision, onednn=False)
    for name, side in sides.items():
        assert side() == 1, name
        (seconds,), (tokens,) = side.seconds, side.tokens
        assert min(seconds.rollout, seconds.label, seconds.update) > 0, name
        assert SIZE.batch_size <= tokens <= SIZE.batch_size * SIZE.max_steps, name
    ours = sides["textgen gkd"]
    assert isinstance(ours, LearnerUpdates)
    assert ours.learner.counters.update == 1
