"""What agents need of an expert: refused before training, or never missed in it."""

import pytest
import torch

from tests.support.updates import ACCOMPANIED, OF_MIXTURES, ROWS, make
from textgen_agents import AGENTS
from textgen_agents.dagger import DAgger
from textgen_agents.distillm import DistiLLM
from textgen_agents.losses.labels import Dense, Top1, TopKWithTail
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.skd import SKD
from textgen_agents.word_kd import WordKD
from textgen_env.experts.expert import Expert, ExpertError, NeuralExpert

ONE_TOKEN_IS_ENOUGH = {
    *("mle", "iq_learn", "scheduled_sampling", "seqkd", "seqinter", "aggrevate"),
    *("imitkd", "imitkd_star", "contrastive_markings", "target_side_augmentation"),
    "genpi",
}

LOOKING_INSIDE = ACCOMPANIED | OF_MIXTURES  # which refuse it for what it is


class Limited(Expert):
    """Gives texts, the most probable token and at most `largest_k` probabilities at a state."""

    largest_k = 0

    def __init__(self, model, largest_k):
        super().__init__()
        self.inner, self.largest_k = NeuralExpert(model), largest_k

    def logits(self, trajectories):
        raise ExpertError("not the whole distribution")

    def best_actions(self, trajectories):
        return self.inner.best_actions(trajectories)

    def top_k(self, trajectories, k):
        if k > self.largest_k:
            raise ExpertError(f"not {k} tokens")
        return self.inner.top_k(trajectories, k)

    def complete(self, *args, **kwargs):
        return self.inner.complete(*args, **kwargs)

    def write(self, examples, *, max_steps, beam_size):
        return self.inner.write(examples, max_steps=max_steps, beam_size=beam_size)

    def write_n_best(self, examples, *, max_steps, beam_size):
        return self.inner.write_n_best(examples, max_steps=max_steps, beam_size=beam_size)

    def start(self, source, max_steps):
        raise ExpertError("not step by step")

    def step(self, state, previous, cache):
        raise ExpertError("not step by step")


@pytest.fixture
def train(tiny_task, make_env, tiny_student):
    """agent, expert -> one update's loss, data and all."""

    def run(agent, expert):
        env = make_env(tiny_task, ROWS, expert)
        env = make_env(tiny_task, ROWS, expert, agent.prepare(env.examples, expert, env.max_steps))
        generator, buffer = torch.Generator().manual_seed(0), agent.make_buffer(env)
        seen = agent.collect(Context(torch.arange(ROWS), env, tiny_student, 0.0, generator, buffer))
        return agent.loss(seen, tiny_student, seen.expert(expert))

    return run


def fits(agent, expert):
    try:
        agent.check_expert(expert)
    except ExpertError:
        return False
    return True


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("largest_k", [0, 10])
def test_who_is_not_refused_misses_nothing(train, tiny_teacher, name, largest_k):
    agent, expert = make(name), Limited(tiny_teacher, largest_k)
    enough = name in ONE_TOKEN_IS_ENOUGH or (name == "distillm" and largest_k > 0)
    assert fits(agent, expert) == enough
    if enough:
        assert train(agent, expert).isfinite()


@pytest.mark.parametrize("name", sorted(set(AGENTS) - LOOKING_INSIDE - ONE_TOKEN_IS_ENOUGH))
def test_who_is_refused_would_miss_something(train, tiny_teacher, name):
    with pytest.raises(ExpertError, match=r"^not "):
        train(make(name), Limited(tiny_teacher, 0))


@pytest.mark.parametrize("label", [Top1(), TopKWithTail(k=4), TopKWithTail(k=5), Dense()])
@pytest.mark.parametrize("beta", [Constant(0.0), Constant(0.5)])
def test_dagger_needs_its_label_and_more_where_the_expert_goes_along(
    train, tiny_teacher, label, beta
):
    agent, expert = DAgger(label=label, beta=beta), Limited(tiny_teacher, 4)
    enough = beta == Constant(0.0) and label in (Top1(), TopKWithTail(k=4))
    assert fits(agent, expert) == enough
    if enough:
        assert train(agent, expert).isfinite()


def test_the_error_names_what_is_wanted_what_there_is_and_a_remedy(tiny_teacher):
    whole = r"must give the whole distribution .* got one that gives one token: choose .* \(imitkd"
    with pytest.raises(ExpertError, match=whole):
        WordKD().check_expert(Limited(tiny_teacher, 0))
    more = r"must give the 10 most probable tokens .* got one that gives the 4 most probable tokens"
    with pytest.raises(ExpertError, match=more):
        DistiLLM().check_expert(Limited(tiny_teacher, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda k: DAgger(label=TopKWithTail(k)),
        lambda k: DistiLLM(label=TopKWithTail(k)),
        lambda k: SKD(k=k),
    ],
)
def test_more_tokens_than_there_are_are_refused(env, make):
    make(env.vocab_size).check_expert(env.expert)
    with pytest.raises(
        ValueError, match=rf"^k must be at most {env.vocab_size}, .* got 12: lower it$"
    ):
        make(env.vocab_size + 1).check_expert(env.expert)
