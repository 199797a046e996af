"""A prompt that the teacher reads and the student does without."""

from dataclasses import replace

import pytest
import torch

from tests.support.updates import assert_learn_the_same, context_of, loss_and_gradients
from textgen_agents.evaluation.quality import translate
from textgen_agents.losses.objectives import token_loss
from textgen_agents.prompt_internalization import GenPI, asking, prompts_of
from textgen_agents.seqkd import SeqKD
from textgen_agents.training.learner import Learner, LearnerConfig
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.generation.decoding import decode_all
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import Pair, TextTask, encode
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import Examples, SpecialTokens

WORDS = [f"w{number}" for number in range(8)]
PROMPT = "write backwards"
FIRST_OF_PROMPT = len(SpecialTokens()) + len(WORDS)  # ids of the words of the prompt, and above


def obey(view, prefix, length):
    """Write the words backwards if the view says so, and else as they are."""
    del prefix
    told = (view >= FIRST_OF_PROMPT).sum(1)
    words = ((view >= 3) & (view < FIRST_OF_PROMPT)).sum(1)
    forth, back = told + length, told + words - 1 - length
    place = back.where(told > 0, forth).clamp(0, view.shape[1] - 1)
    chosen = view.gather(1, place[:, None]).squeeze(1)
    return chosen.masked_fill(length >= words, 2)


def told(pairs):
    return [pair._replace(expert_source=f"{PROMPT} {pair.source}") for pair in pairs]


@pytest.fixture(scope="module")
def told_task():
    """Return the task of words in two views; validation and test ask for them backwards."""
    copied = copy_task(
        CopyConfig(8, min_length=2, max_length=4, num_train=600, num_validation=60, num_test=60)
    )
    tokenizer = Tokenizer.from_words([*WORDS, *PROMPT.split()])

    def backwards(pairs):
        return [Pair(p.source, " ".join(reversed(p.source.split()))) for p in pairs]

    return TextTask(
        name="told",
        tokenizer=tokenizer,
        train=told(copied.train),
        validation=told(backwards(copied.validation)),
        test=told(backwards(copied.test)),
        max_source_length=5,
        max_target_length=5,
        dropped={},
    )


@pytest.mark.slow
def test_without_the_prompt_the_student_does_as_told_and_knows_it(told_task, make_env, tmp_path):
    """The experiment with a known answer."""
    expert, agent = ScriptedExpert(obey, 13), GenPI()
    examples = agent.prepare(encode(told_task.train, told_task), expert, 5)
    torch.manual_seed(0)
    student = Recurrent(RecurrentConfig(13, 32, 1, 1, dropout=0.0))
    env = make_env(told_task, 32, expert, examples)
    config = LearnerConfig(
        updates=500, batch_size=32, learning_rate=5e-3, warmup=50, evaluate_every=500
    )
    Learner(agent, student, env=env, folder=tmp_path, config=config, precision=torch.float32).train(
        lambda model: 0.0, lambda update, record: None
    )
    student.eval()
    pairs = told_task.test
    written = translate(student, told_task, [pair.source for pair in pairs])
    assert written == [pair.reference for pair in pairs]
    sources = asking(encode(pairs, told_task).source, student.special)
    asked = told_task.tokenizer.decode(decode_all(student, sources, 5).tolist())
    assert asked == [PROMPT] * len(pairs)


def test_rows_of_texts_and_of_prompts(told_task):
    expert, examples = ScriptedExpert(obey, 13), encode(told_task.train[:3], told_task)
    prepared = GenPI().prepare(examples, expert, 5)
    decode, special = told_task.tokenizer.decode, SpecialTokens()
    sources = [pair.source for pair in told_task.train[:3]]
    assert decode(prepared.reference.tolist()) == [
        *(" ".join(reversed(source.split())) for source in sources),
        *[PROMPT] * 3,
    ]
    assert torch.equal(prepared.source[:3], examples.source)
    assert (prepared.source[:3] == special.end).sum(1).eq(1).all()
    assert not (prepared.source[3:] == special.end).any()
    assert (prepared.source[3:] == special.start).sum(1).eq(1).all()
    assert torch.equal(prepared.expert_view, examples.expert_view.repeat(2, 1))


def test_a_prompt_may_stand_on_both_sides():
    views = torch.tensor([[9, 3, 4, 8, 2, 0], [9, 9, 5, 8, 2, 0]])
    examples = Examples(torch.tensor([[3, 4, 2], [5, 2, 0]]), torch.tensor([[2], [2]]), views)
    assert prompts_of(examples, SpecialTokens()) == [[9, 8], [9, 9, 8]]


def test_the_weight_is_that_of_the_prompts_tokens(told_task, make_env):
    expert, examples = ScriptedExpert(obey, 13), encode(told_task.train[:6], told_task)
    prepared = GenPI().prepare(examples, expert, 5)
    env = make_env(told_task, 12, expert, prepared)
    torch.manual_seed(0)
    student = Recurrent(RecurrentConfig(13, 16, 1, 1, dropout=0.0)).eval()
    batch = GenPI().collect(context_of(env, student))
    counts = batch.trajectories.mask.sum(1)
    means = [
        token_loss(states, student, states.actions)
        for states in (batch.trajectories.select(torch.arange(12).view(2, 6)[n]) for n in (0, 1))
    ]
    sums = [mean * counts.view(2, 6)[n].sum() for n, mean in enumerate(means)]
    loss, _ = loss_and_gradients(GenPI(prompt_weight=0.3), batch, student, expert)
    expected = (sums[0] + 0.3 * sums[1]) / counts.sum()
    torch.testing.assert_close(loss, expected.detach())


def test_without_weight_it_is_seqkd(tiny_task, make_env, env, expert, tiny_student):
    agent = GenPI(beam_size=2, prompt_weight=0.0)
    prepared = agent.prepare(env.examples, expert, env.max_steps)
    expected = SeqKD(beam_size=2).prepare(env.examples, expert, env.max_steps)
    assert torch.equal(prepared.reference, expected.reference)
    taught = make_env(tiny_task, env.num_envs, expert, prepared)
    assert_learn_the_same(agent, SeqKD(), taught, tiny_student)


def test_examples_without_a_prompt_are_one_line_before_the_teacher_writes(env, expert):
    message = r"^expert_source must be the source with a prompt .* got 64 of 64 that are not: give"
    with pytest.raises(ValueError, match=message):
        GenPI().prepare(env.examples, expert, env.max_steps)
    other = replace(env.examples, expert_source=env.examples.source.flip(1).roll(1, 1))
    with pytest.raises(ValueError, match=r"got \d+ of 64 that are not"):
        GenPI().prepare(other, expert, env.max_steps)
    assert not expert.queries.tokens


def test_a_prompt_that_is_no_text_of_the_task_is_one_line(told_task):
    examples = encode(told_task.train[:3], told_task)
    with pytest.raises(ValueError, match=r"^prompt must have at most 2 tokens with its end, .* 3:"):
        GenPI().prepare(examples, ScriptedExpert(obey, 13), 2)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"^prompt_weight must be at least 0, got -1"):
        GenPI(prompt_weight=-1.0)


def test_only_the_last_end_of_a_conversation_asks_for_the_prompt():
    source = torch.tensor([[5, 2, 6, 2, 0], [7, 2, 0, 0, 0]])
    assert asking(source, SpecialTokens()).tolist() == [[5, 2, 6, 1, 0], [7, 1, 0, 0, 0]]
