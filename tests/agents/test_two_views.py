"""The expert reads another view of the example than the student, whoever asks it and however.

Seen from outside: an expert that is given the clean sources must say what one says that is given
the student's, as long as that one unscrambles them by itself.
"""

from dataclasses import replace

import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.agents.rollouts.test_rollout import mixture
from tests.agents.test_agents import make
from tests.support.toy import permitted
from tests.support.updates import ACCOMPANIED, OF_MIXTURES, ROWS, learn
from textgen_agents import AGENTS
from textgen_agents.evaluation.exposure_bias import compare_with_teacher, written_by
from textgen_agents.losses.labels import LabelledBatch, Top1
from textgen_agents.rollouts.buffer import Buffer
from textgen_agents.rollouts.context import Context
from textgen_agents.rollouts.rollout import rollout
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import NeuralExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.generation.decoding import next_action
from textgen_env.generation.sampling import Sampling
from textgen_env.models.ensemble import Ensemble
from textgen_env.tasks.task import encode
from textgen_env.types import Writer
from textgen_experiments.benchmarks.streaming import stream

FIRST_WORD, NUM_WORDS = 3, 8  # of `tiny_task`
EXPERTS = ["neural", "scripted", "reference"]


def unscrambled(source):
    """Other words than the student's, each of them twice: the views differ in length, too."""
    words = (source - FIRST_WORD + 3) % NUM_WORDS + FIRST_WORD
    twice = words.where(source >= FIRST_WORD, source).repeat_interleave(2, 1)
    ends = twice == 2
    return twice.masked_fill(ends & (ends.cumsum(1) == 2), 0)


class Unscrambling:
    """A model that is given the student's view and reads the expert's."""

    def __init__(self, model):
        self.model, self.special, self.vocab_size = model, model.special, model.vocab_size

    def start(self, source, max_steps):
        return self.model.start(unscrambled(source), max_steps)

    def step(self, previous, cache):
        return self.model.step(previous, cache)

    def sequence_logits(self, source, actions):
        return self.model.sequence_logits(unscrambled(source), actions)


def copy_the_source(source, prefix, length):
    return source.gather(1, length.clamp(max=source.shape[1] - 1)[:, None]).squeeze(1)


def copy_it_unscrambled(source, prefix, length):
    return copy_the_source(unscrambled(source), prefix, length)


@pytest.fixture
def teacher(tiny_teacher, tiny_task, make_table_model):
    """Return a teacher whose texts depend on the whole source."""
    return Ensemble((tiny_teacher, make_table_model(tiny_task, 3)))


@pytest.fixture
def one_view(tiny_task):
    return encode(tiny_task.train, tiny_task)


@pytest.fixture
def two_views(one_view):
    return replace(one_view, expert_source=unscrambled(one_view.source))


@pytest.mark.parametrize("name", sorted(set(AGENTS) - ACCOMPANIED - OF_MIXTURES))
def test_every_agent_learns_what_the_expert_says_of_its_own_view(
    tiny_task, make_env, one_view, two_views, teacher, tiny_student, name
):
    def learned(examples, model):
        agent, expert = make(name), NeuralExpert(model)
        prepared = agent.prepare(examples, expert, tiny_task.max_target_length)
        return learn(agent, make_env(tiny_task, ROWS, expert, prepared), tiny_student)

    _, loss, gradients = learned(two_views, teacher)
    _, expected_loss, expected_gradients = learned(one_view, Unscrambling(teacher))
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(gradients, expected_gradients)
    _, blind_loss, _ = learned(one_view, teacher)
    assert (blind_loss != loss) == make(name).needs_expert, "the test wants views that matter"


@pytest.mark.parametrize("name", AGENTS)
def test_what_is_prepared_has_both_views(two_views, teacher, name):
    prepared = make(name).prepare(two_views, NeuralExpert(teacher), 6)
    copies = len(prepared) // len(two_views)  # rows that are made of each example, one by default
    assert torch.equal(prepared.source, two_views.source.repeat(copies, 1))
    assert torch.equal(prepared.expert_view, two_views.expert_view.repeat(copies, 1))


def pair_of_experts(kind, teacher, one_view, two_views):
    """One that is given its own view, and one that finds it by itself."""
    vocab_size = teacher.vocab_size
    if kind == "scripted":
        scripts = copy_the_source, copy_it_unscrambled
        return [ScriptedExpert(script, vocab_size) for script in scripts]
    if kind == "reference":
        return [DynamicOracle(examples, vocab_size) for examples in (two_views, one_view)]
    return [NeuralExpert(model) for model in (teacher, Unscrambling(teacher))]


@pytest.mark.parametrize("kind", EXPERTS)
def test_the_experts_answers_are_about_its_own_view(kind, teacher, one_view, two_views):
    seeing, finding = pair_of_experts(kind, teacher, one_view, two_views)
    written = [
        expert.write(examples, max_steps=6, beam_size=2)
        for expert, examples in ((seeing, two_views), (finding, one_view))
    ]
    assert torch.equal(written[0].reference, written[1].reference)
    assert torch.equal(written[0].source, one_view.source)
    assert torch.equal(written[0].expert_view, two_views.expert_view)
    labels = [
        expert.best_actions(written_by(teacher, examples, 6, writer=Writer.STUDENT))
        for expert, examples in ((seeing, two_views), (finding, one_view))
    ]
    assert torch.equal(*labels)
    drawn = [
        expert.sample(
            examples,
            max_steps=6,
            sampling=Sampling(),
            generator=torch.Generator().manual_seed(0),
        ).reference
        for expert, examples in ((seeing, two_views), (finding, one_view))
    ]
    assert torch.equal(*drawn)


def advice(env):
    """Return the expert's actions along episodes of drawn actions, (steps, slots)."""
    generator, slot = torch.Generator().manual_seed(0), torch.arange(env.num_envs)
    _, info = env.reset(seed=0)
    said = [info["expert_action"]]
    for step in range(40):
        actions = torch.randint(2, env.vocab_size, (env.num_envs,), generator=generator)
        if env.autoreset_mode == AutoresetMode.DISABLED and step % 4 == 3:
            _, info = env.reset(options={"reset_mask": slot % 2 == step // 4 % 2})
        else:
            *_, info = env.step(permitted(env, actions))
        said.append(info["expert_action"])
    return torch.stack(said)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("kind", EXPERTS)
def test_going_along_it_reads_its_own_view(tiny_task, kind, mode, teacher, one_view, two_views):
    seeing, finding = pair_of_experts(kind, teacher, one_view, two_views)
    settings = {"ask_expert": True, "autoreset_mode": mode, "render_mode": "ansi"}
    envs = [
        TextGenVectorEnv(tiny_task, 4, examples=examples, expert=expert, **settings)
        for expert, examples in ((seeing, two_views), (finding, one_view))
    ]
    assert torch.equal(*map(advice, envs))
    assert torch.equal(*(env.state.source for env in envs)), "the student's view is shown"
    if kind != "neural":
        return
    assert envs[0].render() == envs[1].render(), "also what is asked to be looked at"
    blind = TextGenVectorEnv(tiny_task, 4, examples=one_view, expert=seeing, **settings)
    assert not torch.equal(advice(blind), advice(envs[0]))


@pytest.mark.parametrize("kind", EXPERTS)
def test_in_a_rollout_it_reads_its_own_view(
    tiny_task, make_env, kind, teacher, one_view, two_views, tiny_student
):
    def by_expert(view):
        best = next_action(view.expert_logits, special=tiny_student.special)
        return best, torch.full_like(best, Writer.EXPERT)

    ours, theirs = (
        rollout(
            Context(indices, make_env(tiny_task, ROWS, expert, examples), tiny_student),
            by_expert,
            record_expert_logits=True,
        ).trajectories
        for indices in [torch.arange(40, 40 + ROWS)]
        for expert, examples in zip(
            pair_of_experts(kind, teacher, one_view, two_views), (two_views, one_view), strict=True
        )
    )
    assert torch.equal(ours.actions, theirs.actions)
    chosen = two_views.select(torch.arange(40, 40 + ROWS)).trimmed(tiny_student.special)
    assert torch.equal(ours.expert_view, chosen.expert_view)


def test_a_stream_keeps_the_experts_view(tiny_task, two_views, tiny_student):
    env = TextGenVectorEnv(tiny_task, 3, examples=two_views)
    indices = torch.tensor([7, 60, 3, 21, 0])
    streamed = stream(env, mixture(env, torch.ones(3).bool()), indices, tiny_student)
    chosen = two_views.select(indices).trimmed(env.special)
    assert torch.equal(streamed.source, chosen.source)
    assert torch.equal(streamed.expert_view, chosen.expert_view)


def test_a_buffer_asks_about_the_experts_view_and_keeps_it(
    tiny_task, make_env, two_views, teacher, tiny_student
):
    expert, env = NeuralExpert(teacher), make_env(tiny_task, ROWS, None, two_views)
    students = written_by(
        tiny_student, two_views.select(torch.arange(ROWS)), 6, writer=Writer.STUDENT
    )
    buffer = Buffer(env, capacity=ROWS, label=Top1())
    buffer.add(LabelledBatch(students), expert)
    kept = buffer.latest(ROWS)
    assert torch.equal(kept.trajectories.expert_view, students.trimmed(env.special).expert_view)
    best = expert.best_actions(kept.trajectories)
    mask = kept.trajectories.mask
    assert torch.equal(kept.labels["best_actions"][mask], best[mask])


def test_student_and_teacher_are_compared_on_a_view_each(
    one_view, two_views, teacher, tiny_student
):
    ours = written_by(teacher, two_views, 6, writer=Writer.EXPERT)
    theirs = written_by(Unscrambling(teacher), one_view, 6, writer=Writer.EXPERT)
    assert torch.equal(ours.actions, theirs.actions)
    seen = compare_with_teacher(ours, tiny_student, NeuralExpert(teacher))
    found = compare_with_teacher(theirs, tiny_student, NeuralExpert(Unscrambling(teacher)))
    torch.testing.assert_close(seen.divergence, found.divergence)
    students = written_by(tiny_student, two_views, 6, writer=Writer.STUDENT)
    assert torch.equal(
        students.actions, written_by(tiny_student, one_view, 6, writer=Writer.STUDENT).actions
    )
