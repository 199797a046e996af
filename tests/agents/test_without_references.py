"""Sources without references: agents that learn from them, and those that refuse them."""

from dataclasses import replace

import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.support.updates import (
    CONFIG,
    ROWS,
    Log,
    assert_same_bits,
    collect_batch,
    context_of,
    expert_for,
    loss_and_gradients,
    make,
    no_score,
    weights_of,
)
from textgen_agents import AGENTS
from textgen_agents.agent import Agent
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.rollouts.batches import example_lengths
from textgen_agents.rollouts.rollout import data_first_rollout, student_rollout
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.seqkd import SeqInter, SeqKD
from textgen_agents.training import regularizers
from textgen_agents.training.learner import Learner
from textgen_agents.training.regularizers import References
from textgen_env.envs.rewards import exact_match, expert_log_prob, rouge_l, sentence_bleu
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.types import Writer

LEARNING = [name for name, kind in AGENTS.items() if kind.learns_without_references]
NEEDING = {
    *("mle", "scheduled_sampling", "iq_learn", "word_kd", "seqinter", "kid"),
    "contrastive_markings",
    "aggrevate",  # whose reward is BLEU
    *("okd", "dskd", "dskd_cma"),
}


def without_references(examples, every):
    """Return the examples without the reference of every so-manieth one."""
    rows = torch.arange(len(examples))[:, None] % every == 0
    return replace(examples, reference=examples.reference.masked_fill(rows, 0))


@pytest.fixture
def learner_on(tiny_task, make_env, make_student, tiny_teacher, tmp_path):
    """agent, examples, name, config, references -> a learner of a fresh student."""

    def build(agent, examples, name="run", config=CONFIG, references=None):
        slots, expert = (
            agent.batches_per_rollout * config.batch_size,
            expert_for(agent, tiny_teacher),
        )
        env = make_env(tiny_task, slots, expert, examples)
        return Learner(
            agent,
            make_student(),
            env=env,
            folder=tmp_path / name,
            config=config,
            precision=torch.float32,
            references=references or References(),
        )

    return build


def trained(learner):
    """Return the weights after all updates, and their losses."""
    log = Log()
    learner.train(no_score, log)
    return weights_of(learner.student), [record["loss"] for record in log.values()]


def test_the_agents_that_need_references_are_known():
    assert set(AGENTS) - set(LEARNING) == NEEDING
    assert not Agent.learns_without_references, "an agent from outside must say so itself"


@pytest.mark.parametrize("name", sorted(NEEDING))
def test_agents_that_need_references_are_refused(learner_on, env, name):
    message = f"references for {AGENTS[name].__name__}, got 16 of 64 without: choose an agent"
    with pytest.raises(ValueError, match=message):
        learner_on(make(name), without_references(env.examples, 4))


def test_seqinter_has_nothing_to_choose_by(env, expert):
    with pytest.raises(ValueError, match="references for SeqInter, got 16 of 64 without"):
        SeqInter().prepare(without_references(env.examples, 4), expert, env.max_steps)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", LEARNING)
def test_no_row_is_empty(tiny_task, make_env, env, tiny_student, expert, name, every):
    agent = make(name)
    given = without_references(env.examples, every)
    examples = agent.prepare(given, expert, env.max_steps)
    part = make_env(tiny_task, ROWS, expert, examples)
    for progress in (0.0, 0.5, 1.0):
        batch = collect_batch(agent, part, tiny_student, progress)
        states = batch.trajectories
        assert states.mask.any(1).all()
        bare = ~states.examples.has_reference(part.special)
        assert not (states.mask & (states.writer == Writer.DATA))[bare].any()
        batch = batch.trimmed(part.special)
        loss, _ = loss_and_gradients(agent, batch, tiny_student, batch.expert(part.expert))
        assert loss.isfinite()


@pytest.mark.parametrize(
    ("on_sources", "by_student"),
    [
        (ImitKDFull(beta=Constant(0.7)), ImitKDFull(beta=Constant(0.0))),
        (ImitKD(beta=Constant(1.0)), ImitKD(beta=Constant(0.0))),
        (GKD(student_fraction=0.3), GKD(student_fraction=1.0)),
    ],
)
def test_sources_alone_are_the_students_to_write(learner_on, env, on_sources, by_student):
    """The task copies, so that a source is as long as its reference and comes in the same batch."""
    weights, losses = trained(learner_on(by_student, env.examples, "pairs"))
    bare = without_references(env.examples, 1)
    others, other_losses = trained(learner_on(on_sources, bare, "sources"))
    assert losses == other_losses
    assert_same_bits(others, weights)


def test_seqkd_on_sources_is_seqkd_on_their_pairs(learner_on, env, expert):
    bare = without_references(env.examples, 1)
    prepared = [SeqKD().prepare(each, expert, env.max_steps) for each in (env.examples, bare)]
    assert prepared[1].has_reference(env.special).all()
    names = ("pairs", "sources")
    (weights, losses), (others, other_losses) = (
        trained(learner_on(SeqKD(), each, name)) for each, name in zip(prepared, names, strict=True)
    )
    assert losses == other_losses
    assert_same_bits(others, weights)


def test_the_data_writes_what_it_can_and_the_student_the_rest(
    tiny_task, make_env, env, tiny_student
):
    part = make_env(tiny_task, ROWS, examples=without_references(env.examples, 3))
    context = context_of(part, tiny_student)
    states = data_first_rollout(context, None).trajectories
    alone = student_rollout(context_of(part, tiny_student), None).trajectories
    for row in range(ROWS):
        written = states.actions[row][states.mask[row]].tolist()
        if row % 3:
            reference = env.examples.reference[row]
            assert written == reference[reference != env.special.pad].tolist()
            assert states.writer[row][states.mask[row]].eq(Writer.DATA).all()
        else:
            assert written == alone.actions[row][alone.mask[row]].tolist()
            assert states.writer[row][states.mask[row]].eq(Writer.STUDENT).all()


def test_examples_come_together_by_their_sources_where_there_is_no_reference(env):
    bare = without_references(env.examples, 2)
    bare = replace(bare, source=torch.nn.functional.pad(bare.source, (0, 1), value=3))
    lengths = example_lengths(bare, env.special)
    sources, references = ((t != 0).sum(1) for t in (bare.source, env.examples.reference))
    assert lengths.tolist() == [
        int(sources[n] if n % 2 == 0 else references[n]) for n in range(len(bare))
    ]
    assert not torch.equal(sources, references)


def test_terms_about_references_take_the_rows_that_have_them(learner_on, env, monkeypatch):
    monkeypatch.setattr(regularizers, "FISHER_BATCHES", 2)
    config = replace(CONFIG, reference_weight=0.5, ewc_weight=0.5)
    learner = learner_on(ImitKDFull(), without_references(env.examples, 3), config=config)
    known = torch.arange(len(env.examples)) % 3 != 0
    assert torch.equal(learner.references.reference, env.examples.reference[known])
    log = Log()
    learner.train(no_score, log)
    assert all(record["reference_term"] > 0 for record in log.values())


@pytest.mark.parametrize("name", ["reference_weight", "ewc_weight"])
def test_terms_about_references_need_some(learner_on, env, name):
    config, bare = replace(CONFIG, **{name: 0.5}), without_references(env.examples, 1)
    with pytest.raises(ValueError, match="must be 0 where no example has a reference, got 0"):
        learner_on(ImitKDFull(), bare, config=config)
    learner_on(ImitKDFull(), bare, config=config, references=References(train=env.examples))


@pytest.mark.parametrize("reward", [exact_match, sentence_bleu, rouge_l])
def test_rewards_that_compare_with_references_are_refused(tiny_task, env, expert, reward):
    bare = without_references(env.examples, 4)
    with pytest.raises(ValueError, match="references where 16 of 64 examples have none, got one"):
        TextGenVectorEnv(tiny_task, 2, examples=bare, reward=reward)
    judged = TextGenVectorEnv(
        tiny_task,
        2,
        examples=bare,
        expert=expert,
        ask_expert=True,
        reward=expert_log_prob,
        autoreset_mode=AutoresetMode.DISABLED,
    )
    observation, _ = judged.reset(options={"indices": torch.tensor([0, 1])})
    assert torch.equal(observation["source"], env.examples.source[:2])
    assert (judged.step(torch.tensor([3, 3]))[1] < 0).all()


def test_the_dynamic_oracle_needs_references(env):
    with pytest.raises(ValueError, match="references for the dynamic oracle, got 16 of 64 without"):
        DynamicOracle(without_references(env.examples, 4), env.vocab_size)
