import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.toy import SPECIAL, TabularModel
from textgen_env import dynamics
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode
from textgen_env.types import Examples, ShapeError, SpecialTokens, Trajectories

TASK = copy_task(
    CopyConfig(num_words=6, min_length=1, max_length=4, num_train=40, num_validation=2, num_test=2)
)
EXAMPLES = encode(TASK.train, TASK)
VOCAB_SIZE = TASK.tokenizer.vocab_size


def make(num_envs=3, **settings):
    return TextGenVectorEnv(TASK, num_envs, **settings)


@pytest.mark.parametrize("num_envs", [0, -1])
def test_there_is_at_least_one_slot(num_envs):
    with pytest.raises(ValueError, match=f"num_envs must be at least 1, got {num_envs}"):
        make(num_envs)


def test_an_autoreset_mode_by_name_is_refused():
    with pytest.raises(
        TypeError, match=r"autoreset_mode must be a .*AutoresetMode, got 'SameStep'"
    ):
        make(autoreset_mode="SameStep")


def test_a_limit_of_one_step_is_refused():
    with pytest.raises(ValueError, match="max_target_length must be at least 2, got 1"):
        TextGenVectorEnv(replace(TASK, max_target_length=1))


def test_no_examples_are_refused_and_not_replaced():
    empty = Examples(EXAMPLES.source[:0], EXAMPLES.reference[:0])
    with pytest.raises(ValueError, match="examples must hold at least one pair"):
        make(examples=empty)


def test_sources_beyond_the_limit_are_refused_and_not_cut():
    wide = Examples(EXAMPLES.source.repeat(1, 2), EXAMPLES.reference)
    with pytest.raises(ShapeError, match="must have at most 5 tokens"):
        make(examples=wide)


def test_a_tokenizer_whose_texts_end_in_padding_is_refused():
    tokenizer = copy.copy(TASK.tokenizer)
    tokenizer.special = SpecialTokens(pad=2)
    with pytest.raises(ValueError, match=r"end token must differ from its padding.*got 2 for both"):
        TextGenVectorEnv(replace(TASK, tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("num_envs", "shown"), [("3", "'3'"), (2.5, "2.5"), (None, "None"), (torch.tensor(3), "tensor")]
)
def test_a_number_of_slots_that_is_no_integer_is_refused(num_envs, shown):
    with pytest.raises(TypeError, match=f"num_envs must be an integer, got {shown}"):
        make(num_envs)


def test_a_number_of_slots_may_be_numpys():
    assert make(np.int64(3)).reset()[0]["length"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("padding", [1, 128, 1024])
def test_an_expert_with_a_padded_vocabulary_answers_within_the_tokenizers(padding):
    model = TabularModel(VOCAB_SIZE + padding, sources=3, max_steps=0)
    model.table[:, VOCAB_SIZE:] += 100  # the best action, if padding counted
    given = NeuralExpert(model)
    env = make(expert=given)
    examples = Examples(model.sources(3), model.sources(3)[:, :1])
    trajectories = Trajectories.from_examples(examples, SPECIAL)
    assert given.best_actions(trajectories).min() >= VOCAB_SIZE
    logits = env.expert.logits(trajectories)
    assert torch.equal(logits, given.logits(trajectories)[..., :VOCAB_SIZE])
    assert env.expert.best_actions(trajectories).max() < VOCAB_SIZE
    cache = env.expert.start(trajectories.source, 1)
    state = dynamics.initial(trajectories.source, 2, SPECIAL)
    step_logits, _ = env.expert.step(state, torch.full((3,), SPECIAL.start), cache)
    assert torch.equal(step_logits, logits[:, 0])
    written = env.expert.write(examples, max_steps=1, beam_size=1)
    assert written.reference.max() < VOCAB_SIZE
    assert env.expert.vocab_size == VOCAB_SIZE


@pytest.mark.parametrize(
    ("vocab_size", "how"), [(VOCAB_SIZE - 1, "1 fewer"), (VOCAB_SIZE + 1025, "1025 more")]
)
def test_an_expert_of_another_vocabulary_is_refused(vocab_size, how):
    expert = NeuralExpert(TabularModel(vocab_size, sources=1, max_steps=0))
    message = f"vocabulary must be the tokenizer's, {VOCAB_SIZE} .* got {vocab_size}, {how}: give"
    with pytest.raises(ValueError, match=message):
        make(expert=expert)


def scripted(vocab_size, special=None):
    return ScriptedExpert(lambda source, prefix, length: length, vocab_size, special)


def by_reference(vocab_size, special=None):
    return DynamicOracle(EXAMPLES, vocab_size, special)


@pytest.mark.parametrize("kind", [scripted, by_reference])
@pytest.mark.parametrize("ask_expert", [False, True])
@pytest.mark.parametrize(("more", "how"), [(-1, "1 fewer"), (1, "1 more"), (1025, "1025 more")])
def test_an_expert_that_is_no_model_has_the_tokenizers_vocabulary(kind, ask_expert, more, how):
    message = f"must be the tokenizer's, {VOCAB_SIZE} tokens, got {VOCAB_SIZE + more}, {how}: give"
    with pytest.raises(ValueError, match=message):
        make(expert=kind(VOCAB_SIZE + more), ask_expert=ask_expert)
    expert = kind(VOCAB_SIZE)
    assert make(expert=expert, ask_expert=ask_expert).expert is expert


@pytest.mark.parametrize("kind", [scripted, by_reference])
def test_an_expert_that_is_no_model_has_the_tokenizers_special_tokens(kind):
    with pytest.raises(ValueError, match="special tokens must be the tokenizer's"):
        make(expert=kind(VOCAB_SIZE, SpecialTokens(pad=0, start=2, end=1)))


def test_an_expert_that_does_not_state_its_vocabulary_is_not_checked():
    expert = NoExpert(SpecialTokens(pad=0, start=2, end=1))
    assert make(expert=expert).expert is expert


def test_an_expert_with_other_special_tokens_is_refused():
    model = TabularModel(VOCAB_SIZE, sources=1, max_steps=0)
    model.special = SpecialTokens(pad=2, start=1, end=0)
    with pytest.raises(ValueError, match="special tokens must be the tokenizer's"):
        make(expert=NeuralExpert(model))


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"noise": 0.1}, TypeError, r"noise must be a function of .* or None, got 0.1"),
        ({"reward": "bleu"}, TypeError, "reward must be a function of a step, got 'bleu'"),
        ({"expert": TabularModel()}, TypeError, r"expert must be .* TabularModel; .*NeuralExpert"),
        ({"examples": ["a"]}, TypeError, "examples must be Examples, got a list; encode"),
        ({"device": "gpu"}, ValueError, "device must be one that this machine has, got 'gpu'; cpu"),
        ({"device": "cuda:77"}, ValueError, "device must be one .*, got 'cuda:77'"),
        ({"device": 3.5}, ValueError, "device must be one .*, got 3.5"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused_before_the_first_step(settings, kind, message):
    with pytest.raises(kind, match=message):
        make(**settings)


def test_a_task_by_its_name_is_refused():
    with pytest.raises(TypeError, match=r"task must be a Task, got 'copy'; gymnasium.make"):
        TextGenVectorEnv("copy")


@pytest.mark.parametrize(
    ("examples", "kind", "message"),
    [
        ((EXAMPLES.source[:, :0], EXAMPLES.reference), ShapeError, "the sources .* got none"),
        ((EXAMPLES.source, EXAMPLES.reference[:, :0]), ShapeError, "the references .* got none"),
        ((EXAMPLES.source.float(), EXAMPLES.reference), ShapeError, "the sources .* be integers"),
        ((EXAMPLES.source + 99, EXAMPLES.reference), ValueError, r"the sources .* be in \[0, 9\)"),
        ((EXAMPLES.source, EXAMPLES.reference - 1), ValueError, r"the references .*, got -1 to"),
    ],
)
def test_examples_of_other_tokens_are_refused(examples, kind, message):
    with pytest.raises(kind, match=message):
        make(examples=Examples(*examples))


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        (lambda actions, _: actions.float(), ShapeError, "what noise returns must be integers"),
        (lambda actions, _: actions[:1], ShapeError, r"what noise returns must have shape \(3\)"),
        (lambda actions, _: actions + 99, ValueError, r"what noise returns must be in \[0, 9\)"),
        (lambda actions, _: None, TypeError, "what noise returns must be made of numbers"),
    ],
)
def test_noise_writes_tokens_that_there_are(returned, kind, message):
    env = make(noise=returned)
    env.reset(seed=0)
    with pytest.raises(kind, match=message):
        env.step(torch.tensor([3, 4, 5]))
