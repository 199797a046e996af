import pytest
import torch
from sacrebleu import sentence_bleu

from tests.support.updates import context_of
from textgen_agents import seqkd
from textgen_agents.losses.labels import LabelledBatch
from textgen_agents.seqkd import SeqInter, SeqKD
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.tasks.task import encode
from textgen_env.types import Examples


@pytest.fixture
def teacher(tiny_task, make_table_model):
    return NeuralExpert(make_table_model(tiny_task, 3))


@pytest.fixture
def gold(tiny_task):
    return encode(tiny_task.train, tiny_task)


def bleu(text, reference):
    words, target = (
        " ".join(str(token) for token in row.tolist() if token > 2) for row in (text, reference)
    )
    return sentence_bleu(words, [target], tokenize="none").score


@pytest.mark.parametrize("chunk", [256, 5])
def test_of_the_beams_texts_the_one_most_like_the_reference(teacher, gold, monkeypatch, chunk):
    monkeypatch.setattr(seqkd, "EXAMPLES_SCORED_TOGETHER", chunk)
    prepared = SeqInter(beam_size=4).prepare(gold, teacher, 5)
    hypotheses = teacher.write_n_best(gold, max_steps=5, beam_size=4)
    places = set()
    for texts, reference, chosen in zip(
        hypotheses, gold.reference, prepared.reference, strict=True
    ):
        scores = [bleu(text, reference) for text in texts]
        best = max(range(4), key=scores.__getitem__)  # the first of equals
        assert torch.equal(chosen, texts[best])
        places.add(best)
    assert len(places) > 2, "the test wants others than the most probable"
    assert torch.equal(prepared.source, gold.source)


class Offering(NoExpert):
    """Writes what it is told."""

    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    def write_n_best(self, examples, *, max_steps, beam_size):
        return self.texts


def test_end_tokens_and_missing_texts_are_not_like_a_reference():
    """Of a text that shares the end token only, one that is none, and one word: the word."""
    texts = torch.tensor([[[9, 2, 0], [0, 0, 0], [8, 4, 2]]])
    gold = Examples(torch.tensor([[5, 2]]), torch.tensor([[4, 2]]))
    chosen = SeqInter(beam_size=3).prepare(gold, Offering(texts), 3)
    assert chosen.reference.tolist() == [[8, 4, 2]]


def test_where_none_is_like_it_the_most_probable_stays():
    texts = torch.tensor([[[9, 2, 0], [8, 2, 0]]])
    gold = Examples(torch.tensor([[5, 2]]), torch.tensor([[4, 2]]))
    chosen = SeqInter(beam_size=2).prepare(gold, Offering(texts), 3)
    assert chosen.reference.tolist() == [[9, 2, 0]]


def test_of_one_hypothesis_it_is_seqkd(teacher, gold):
    inter, seqkd = (agent.prepare(gold, teacher, 5) for agent in (SeqInter(1), SeqKD(1)))
    assert torch.equal(inter.reference, seqkd.reference)


def test_it_learns_the_chosen_texts(tiny_task, make_env, teacher, gold, tiny_student):
    agent = SeqInter(beam_size=4)
    prepared = agent.prepare(gold, teacher, 5)
    env = make_env(tiny_task, 8, teacher, prepared)
    trajectories = agent.collect(context_of(env, tiny_student)).trajectories
    chosen = prepared.reference[:8]
    logits = tiny_student.sequence_logits(gold.source[:8], chosen)
    losses = -logits.log_softmax(-1).gather(-1, chosen[..., None]).squeeze(-1)
    loss = agent.loss(LabelledBatch(trajectories), tiny_student, teacher)
    torch.testing.assert_close(loss, losses[chosen != 0].mean())
