"""Parts of a student that keep their weights: what is trained beside them, and wrong names."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.support.updates import (
    CONFIG,
    Log,
    StoppedError,
    assert_same_bits,
    no_score,
    weights_of,
)
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.training.frozen import with_frozen_parts
from textgen_env.models.transformer import TransformerConfig

ENCODER = ["embedding", "encoder", "encoder_norm"]
FROZEN = replace(CONFIG, frozen=("embedding",), ema=0.5)


@pytest.fixture
def small_transformer():
    return TransformerConfig(vocab_size=9, width=8, num_heads=2, dropout=0.0).build()


def test_frozen_parts_keep_their_bits_and_all_others_are_trained(make_learner):
    learner = make_learner(ImitKDFull(), FROZEN)
    before = weights_of(learner.student)
    learner.train(no_score, Log())
    for model in (learner.student, learner.evaluated):
        kept = {
            name for name, weight in weights_of(model).items() if torch.equal(weight, before[name])
        }
        assert kept == {name for name in before if name.startswith("embedding.")}


def test_a_resumed_run_ends_as_one_never_stopped(make_learner):
    agent = ImitKDFull(batches_per_rollout=2)
    unbroken, stopped = (make_learner(agent, FROZEN, name, dropout=0.3) for name in "ab")
    unbroken.train(no_score, Log())
    with pytest.raises(StoppedError):
        stopped.train(no_score, Log(6))
    resumed = make_learner(agent, FROZEN, "b", dropout=0.3)
    assert resumed.counters.update == 4
    resumed.train(no_score, Log())
    for file in ("last", "best"):
        assert_same_bits(load_file(getattr(resumed, file)), load_file(getattr(unbroken, file)))


def test_no_gradient_is_computed_before_what_is_trained(small_transformer):
    assert with_frozen_parts(small_transformer, ENCODER) is small_transformer
    source, actions = torch.tensor([[3, 4, 2]]), torch.tensor([[5, 6, 2]])
    given = []
    small_transformer.encoder_norm.register_forward_hook(lambda *parts: given.append(parts[-1]))
    small_transformer.sequence_logits(source, actions).sum().backward()
    assert not given[0].requires_grad
    trained = {
        name for name, weight in small_transformer.named_parameters() if weight.requires_grad
    }
    assert {name.split(".")[0] for name in trained} == {"decoder", "decoder_norm"}


def test_a_student_that_was_frozen_elsewhere_is_left_to_what_is_trained_beside_it(
    small_transformer,
):
    assert with_frozen_parts(small_transformer.requires_grad_(False), ()) is small_transformer


@pytest.mark.parametrize("part", ["encodr", "", "encoder.7"])
def test_a_wrong_name_is_told_the_right_ones(small_transformer, part):
    message = f"^frozen must name parts of the student, got '{part}': they are embedding, encoder, "
    with pytest.raises(ValueError, match=message):
        with_frozen_parts(small_transformer, [part])


def test_something_is_left_to_be_trained(small_transformer):
    with pytest.raises(
        ValueError, match=r"^frozen must leave a part to be trained, got embedding, "
    ):
        with_frozen_parts(small_transformer, [*ENCODER, "decoder", "decoder_norm"])
