"""Short roll-ins: where the student stops writing, and what is then asked of the teacher."""

from dataclasses import replace

import pytest
import torch

from tests.support.updates import CONFIG, ROWS, Log, assert_same_bits, make, no_score, weights_of
from textgen_agents import AGENTS
from textgen_agents.dagger import DAgger
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.lengths import expected_lengths, shares_of
from textgen_agents.rollouts.rollout import mixed_rollout, student_rollout
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.skd import SKD
from textgen_agents.training.learner import LearnerConfig
from textgen_env.types import Examples, SpecialTokens, Writer

WRITING = [name for name in AGENTS if AGENTS[name].student_writes]
SILENT = [name for name in AGENTS if not AGENTS[name].student_writes]


def test_texts_without_reference_have_a_length_in_proportion_to_their_source():
    source = torch.tensor([[5, 5, 5, 2], [5, 2, 0, 0], [5, 5, 2, 0]])
    reference = torch.tensor([[5, 5, 2], [0, 0, 0], [5, 5, 2]])
    lengths = expected_lengths(Examples(source, reference), SpecialTokens())
    assert lengths.tolist() == pytest.approx([3, 2 * 6 / 7, 3])
    with pytest.raises(ValueError, match=r"^roll_in_share must be 1 for sources without refer"):
        expected_lengths(Examples(source, torch.zeros_like(reference)), SpecialTokens())


def test_shares_of_lengths_are_rounded_up():
    lengths = torch.tensor([1.0, 3.0, 10.0, 30.0]).double()
    assert shares_of(lengths, 0.1).tolist() == [1, 1, 1, 3]
    assert shares_of(lengths, 0.5).tolist() == [1, 2, 5, 15]
    assert shares_of(lengths, 1.0) is None


@pytest.fixture
def limits():
    return torch.arange(ROWS) % 3 + 1


def context_with(env, student, limits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Context(torch.arange(ROWS), env, student, 0.5, generator, max_written=limits)


def test_a_short_roll_in_is_the_beginning_of_the_whole_one(env, tiny_student, limits):
    whole = student_rollout(context_with(env, tiny_student, None), None).trajectories
    short = student_rollout(context_with(env, tiny_student, limits), None).trajectories
    assert torch.equal(short.mask.sum(1), whole.mask.sum(1).minimum(limits))
    width = short.actions.shape[1]
    assert width <= 3
    assert torch.equal(short.actions, whole.actions[:, :width].masked_fill(~short.mask, 0))


def test_a_limit_that_no_text_reaches_changes_nothing(env, tiny_student):
    far = torch.full((ROWS,), env.max_steps)
    for beta in (0.0, 0.5):
        whole, limited = (
            mixed_rollout(context_with(env, tiny_student, each), beta=beta, sampling=None)
            for each in (None, far)
        )
        for name in ("actions", "writer", "mask"):
            expected = getattr(whole.trajectories, name)
            assert torch.equal(getattr(limited.trajectories, name), expected)


def test_texts_of_the_data_stay_whole(env, tiny_student, limits):
    mixed = mixed_rollout(context_with(env, tiny_student, limits), beta=0.5, sampling=None)
    states = mixed.trajectories
    by_student = ((states.writer == Writer.STUDENT) & states.mask).any(1)
    lengths = states.mask.sum(1)
    assert by_student.any()
    assert not by_student.all()
    assert lengths[by_student].le(limits[by_student]).all()
    references = (states.reference != 0).sum(1)
    assert torch.equal(lengths[~by_student], references[~by_student])
    assert lengths[~by_student].gt(limits[~by_student]).any()


@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("noise", [False, True])
def test_every_agent_whose_student_writes_learns_from_short_texts(
    env, noisy_env, tiny_student, limits, name, noise
):
    agent, env = make(name), noisy_env if noise else env
    context = replace(context_with(env, tiny_student, limits), buffer=agent.make_buffer(env))
    batch = agent.collect(context)
    states = batch.trajectories
    for writer, mask in zip(states.writer, states.mask, strict=True):
        before_last = writer[: mask.sum() - 1]
        assert len(before_last) < 3 or before_last.eq(Writer.DATA).all()
    assert not states.actions[~states.mask].any()
    assert states.mask.any(1).all()
    loss = agent.loss(batch, tiny_student, batch.expert(env.expert))
    assert loss.isfinite()


def test_a_teacher_that_is_queried_at_every_step_is_queried_less(env, tiny_student, limits):
    asked = []
    for each in (None, limits):
        before = env.expert.queries.tokens
        batch = SKD(k=3).collect(context_with(env, tiny_student, each))
        asked.append(env.expert.queries.tokens - before)
        assert asked[-1] == batch.trajectories.mask.sum()
    assert asked[1] <= limits.sum() < asked[0]


@pytest.mark.parametrize("agent", [ImitKDFull(beta=Constant(0.0)), DAgger(beta=Constant(0.0))])
def test_the_teacher_is_asked_less_in_training(make_learner, agent):
    asked, shares = {}, {}
    for share, end in ((1.0, None), (0.4, None), (0.4, 1.0)):
        config, log = replace(CONFIG, roll_in_share=share, roll_in_share_end=end), Log()
        learner = make_learner(agent, config, f"{share} {end}")
        asked[share, end] = learner.train(no_score, log).teacher_tokens
        shares[share, end] = [record.get("roll_in_share") for record in log.values()]
    assert asked[0.4, None] < asked[0.4, 1.0] < asked[1.0, None]
    assert asked[0.4, None] < 0.6 * asked[1.0, None]
    assert shares[1.0, None] == [None] * 12
    assert shares[0.4, None] == [0.4] * 12
    assert shares[0.4, 1.0] == pytest.approx([0.4 + 0.6 * update / 12 for update in range(12)])


def test_a_share_of_1_is_a_run_without_it(make_learner):
    config = replace(CONFIG, roll_in_share=1.0, roll_in_share_end=1.0)
    plain, whole = (make_learner(ImitKD(), c, n) for c, n in ((CONFIG, "a"), (config, "b")))
    for learner in (plain, whole):
        learner.train(no_score, Log())
    assert_same_bits(weights_of(whole.student), weights_of(plain.student))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["roll_in_share", "roll_in_share_end"])
def test_shares_outside_their_range_are_refused(name, share):
    with pytest.raises(ValueError, match=rf"^{name} must be in \(0, 1\].*, got"):
        LearnerConfig(**{name: share})


@pytest.mark.parametrize("name", SILENT)
def test_agents_whose_student_writes_nothing_refuse_a_share(make_learner, name):
    agent = AGENTS[name]()
    for shares in ({"roll_in_share": 0.5}, {"roll_in_share_end": 0.5}):
        with pytest.raises(ValueError, match=r"^roll_in_share must be 1 for \w+, whose student"):
            make_learner(agent, replace(CONFIG, **shares))


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_says_whether_its_student_writes(env, tiny_student, monkeypatch, name):
    """By asking whether anything is stepped, over several draws of who writes."""
    agent, stepped = make(name), []
    step = env.step
    monkeypatch.setattr(env, "step", lambda *args: stepped.append(1) or step(*args))
    for seed in range(6):
        context = context_with(env, tiny_student, None, seed)
        agent.collect(replace(context, buffer=agent.make_buffer(env)))
    assert bool(stepped) == (agent.student_writes and name != "distillm")  # it begins with data
