from dataclasses import asdict

import pytest
import torch
from torch import nn

import textgen_agents.training.checkpoint
from textgen_agents.losses.labels import LabelledBatch, Top1
from textgen_agents.rollouts.buffer import Buffer
from textgen_agents.training.checkpoint import (
    CheckpointClock,
    CheckpointError,
    Counters,
    discard_checkpoints,
    load_checkpoint,
    read_counters,
    save_checkpoint,
)
from textgen_env.experts.expert import NeuralExpert
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories

COUNTERS = Counters(
    update=3,
    best=12.5,
    best_update=2,
    seconds=0.1 + 0.2,
    teacher_tokens=10**9,
    validation=[12.5, 0.1 + 0.2],
    validation_losses=[2.0, 0.1 + 0.2],
)


def make_trained(seed, updates, width=4):
    """Return a model and its optimizer after some updates."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    train(model, optimizer, updates)
    return model, optimizer


def train(model, optimizer, updates):
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()


def state_of(model, optimizer):
    tensors = dict(model.state_dict())
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": value for name, value in state.items()}
    return {name: value.clone() for name, value in tensors.items()}


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints" / "last.safetensors"


@pytest.fixture
def saved(path):
    """Save a checkpoint, and return its path and the state that was saved."""
    model, optimizer = make_trained(seed=0, updates=3)
    save_checkpoint(path, model, optimizer, COUNTERS)
    return path, state_of(model, optimizer)


def test_a_checkpoint_is_loaded_bit_for_bit(saved):
    path, expected = saved
    model, optimizer = make_trained(seed=1, updates=0)
    assert load_checkpoint(path, model, optimizer) == COUNTERS
    assert_same_bits(state_of(model, optimizer), expected)


def test_loading_replaces_the_state_of_another_run(saved):
    path, expected = saved
    model, optimizer = make_trained(seed=1, updates=5)
    load_checkpoint(path, model, optimizer)
    assert_same_bits(state_of(model, optimizer), expected)


def test_a_resumed_run_makes_the_updates_of_an_unbroken_run(saved):
    path, _ = saved
    unbroken = make_trained(seed=0, updates=3)
    resumed = make_trained(seed=1, updates=0)
    load_checkpoint(path, *resumed)
    train(*unbroken, updates=4)
    train(*resumed, updates=4)
    assert_same_bits(state_of(*resumed), state_of(*unbroken))


def test_a_run_without_updates_and_without_a_best_is_saved(path):
    model, optimizer = make_trained(seed=0, updates=0)
    save_checkpoint(path, model, optimizer, Counters())
    assert load_checkpoint(path, model, optimizer) == Counters()


def test_the_progress_of_a_run_is_read_without_its_weights(saved):
    path, _ = saved
    assert read_counters(path) == COUNTERS
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="delete the run's folder"):
        read_counters(path)


@pytest.mark.parametrize(("keep_last", "left"), [(True, {"last.safetensors"}), (False, set())])
def test_a_finished_run_keeps_one_checkpoint_or_none(tmp_path, keep_last, left):
    folder = tmp_path / "checkpoints"
    discard_checkpoints(folder, keep_last=keep_last)  # there is none yet
    folder.mkdir()
    for name in ("last", "best", "ewc"):
        (folder / f"{name}.safetensors").touch()
    discard_checkpoints(folder, keep_last=keep_last)
    assert folder.exists() == bool(left)
    assert {path.name for path in folder.glob("*")} == left


@pytest.mark.parametrize(("minutes", "due"), [(0, True), (1.5, True), (1.6, False)])
def test_a_checkpoint_is_due_after_some_minutes(monkeypatch, minutes, due):
    now = [100.0]
    monkeypatch.setattr(textgen_agents.training.checkpoint.time, "monotonic", lambda: now[0])
    clock = CheckpointClock(minutes)
    now[0] += 90
    assert clock.is_due() == due
    clock.restart()
    assert clock.is_due() == (minutes == 0)


@pytest.fixture
def make_buffer(tiny_task, make_env):
    env = make_env(tiny_task, 2)
    return lambda: Buffer(env, capacity=5, label=Top1())


def test_a_buffer_is_saved_bit_for_bit(path, make_buffer, tiny_task, tiny_teacher):
    model, optimizer = make_trained(seed=0, updates=1)
    buffer, resumed = make_buffer(), make_buffer()
    examples = encode(tiny_task.validation[:3], tiny_task)
    for _ in range(2):
        states = Trajectories.from_examples(examples, tiny_task.tokenizer.special)
        buffer.add(LabelledBatch(states), NeuralExpert(tiny_teacher))
    other = make_buffer()
    save_checkpoint(path, model, optimizer, COUNTERS, [other.state_dict(), buffer.state_dict()])
    load_checkpoint(path, model, optimizer, resumed, process=1)
    assert resumed.added == 6
    assert_same_bits(resumed.state_dict(), buffer.state_dict())
    load_checkpoint(path, model, optimizer, resumed, process=0)
    assert not resumed.added


def test_a_file_without_the_buffer_is_refused_by_name(saved, make_buffer):
    path, _ = saved
    with pytest.raises(CheckpointError, match=r"last\.safetensors must hold the state of this run"):
        load_checkpoint(path, *make_trained(seed=0, updates=0), make_buffer())


def test_weights_that_are_views_are_saved(path):
    model, optimizer = make_trained(seed=0, updates=1)
    weight = next(model.parameters())
    weight.data = weight.data.T.contiguous().T
    expected = state_of(model, optimizer)
    save_checkpoint(path, model, optimizer, Counters())
    load_checkpoint(path, model, optimizer)
    assert_same_bits(state_of(model, optimizer), expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:7],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"\xff" * 8 + whole[8:],
        lambda whole: whole.replace(b"update", b"upbeat", 1),
        lambda whole: whole.replace(rb"\"update\": 3", rb"\"update\"; 3", 1),
        lambda whole: b"not a checkpoint at all, but longer than the length of a header",
    ],
)
def test_a_damaged_file_is_refused_by_name(saved, damage):
    path, _ = saved
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    with pytest.raises(CheckpointError, match=r"checkpoint .*last\.safetensors must hold"):
        load_checkpoint(path, *make_trained(seed=0, updates=0))


def test_the_file_of_another_model_is_refused_by_name(saved):
    path, _ = saved
    with pytest.raises(CheckpointError, match=r"last\.safetensors must hold the state of this run"):
        load_checkpoint(path, *make_trained(seed=0, updates=0, width=5))


def test_a_file_of_weights_alone_is_refused_by_name(saved):
    path, _ = saved
    model, optimizer = make_trained(seed=0, updates=0)
    textgen_agents.training.checkpoint.save_atomically(path, model.state_dict(), {})
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        load_checkpoint(path, model, optimizer)


@pytest.mark.parametrize("written", [0, 100])
def test_a_write_that_fails_leaves_the_old_file(saved, monkeypatch, written):
    path, expected = saved

    def disk_full(tensors, partial, metadata):
        del tensors, metadata
        partial.write_bytes(b"x" * written)
        raise OSError("no space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(textgen_agents.training.checkpoint, "save_file", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, *make_trained(seed=1, updates=2), Counters())
    assert path.read_bytes() == before
    model, optimizer = make_trained(seed=1, updates=0)
    load_checkpoint(path, model, optimizer)
    assert_same_bits(state_of(model, optimizer), expected)


def test_a_partial_file_of_a_killed_write_is_overwritten(saved):
    path, _ = saved
    path.with_name(path.name + ".partial").write_bytes(b"half")
    model, optimizer = make_trained(seed=1, updates=2)
    save_checkpoint(path, model, optimizer, COUNTERS)
    assert [file.name for file in path.parent.iterdir()] == ["last.safetensors"]
    assert asdict(load_checkpoint(path, model, optimizer)) == asdict(COUNTERS)
