"""All instruments of one student: they fit together, and those without a teacher are absent."""

from dataclasses import asdict
from functools import partial

import pytest

from agents.batches import generator_for
from agents.evaluation import bleu, bleu_by_length
from agents.exposure import (
    compare,
    coverage_risk,
    excess_accumulated_error,
    likelihood_risk,
    written_by,
)
from agents.exposure_panel import SEED, SHARES, Teacher, exposure, figures_while_training
from textgen_env.decoding import Sampling, sample
from textgen_env.expert import NeuralExpert
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories, Writer

BESIDE_TEACHER = {
    "teacher_pairs",
    "positions",
    "excess_accumulated_error",
    "likelihood_risk",
    "coverage_risk",
    "teacher_finishes",
}


@pytest.fixture
def examples(tiny_task):
    return encode(tiny_task.train, tiny_task)


@pytest.fixture
def student(tiny_task, make_table_model):
    return make_table_model(tiny_task, 3)


@pytest.fixture
def own(student, tiny_task, examples):
    return written_by(student, examples, tiny_task.max_target_length, writer=Writer.STUDENT)


@pytest.fixture
def make_teacher(tiny_task, examples):
    """model, number of pairs -> the teacher with its texts for them."""

    def make(model, count=64):
        steps = tiny_task.max_target_length
        some = examples.select(examples.source.new_tensor(range(count)))
        return Teacher.of(NeuralExpert(model), written_by(model, some, steps, writer=Writer.EXPERT))

    return make


def test_every_instrument_is_read_on_the_texts_it_is_about(
    tiny_task, student, own, make_teacher, tiny_teacher
):
    teacher = make_teacher(tiny_teacher)
    pairs, tokenizer = tiny_task.train, tiny_task.tokenizer
    found = exposure(student, own, pairs, tokenizer, teacher)
    gold = Trajectories.from_examples(encode(pairs, tiny_task), tokenizer.special)
    texts = {"gold": gold, "own": own, "teacher": teacher.written}
    for who, positions in found.positions.items():
        expected = compare(texts[who], student, teacher.expert)
        seen = len(positions.count)
        assert positions.count == expected.count[:seen].tolist()
        assert positions.agreement == expected.agreement[:seen].tolist()
        assert positions.divergence == expected.divergence[:seen].tolist()
        assert sum(positions.count) == texts[who].mask.sum()
    hypotheses, references = (
        tokenizer.decode(texts[who].actions.tolist()) for who in ("own", "gold")
    )
    by_teacher = tokenizer.decode(teacher.written.actions.tolist())
    finished = {each.share: each.bleu for each in found.teacher_finishes}
    assert tuple(finished) == (0.0, *SHARES, 1.0)
    assert finished[0.0] == bleu(by_teacher, references)
    assert finished[1.0] == bleu(hypotheses, references)
    assert found.bleu_by_source_length == bleu_by_length(hypotheses, references, references)
    assert found.teacher_pairs == len(pairs)
    drawing = partial(
        sample, sampling=Sampling(), generator=generator_for(SEED, "student draws", 0)
    )
    drawn = written_by(
        student,
        encode(pairs, tiny_task),
        own.actions.shape[1],
        writer=Writer.STUDENT,
        decoder=drawing,
    )
    assert found.likelihood_risk == likelihood_risk(drawn, teacher.expert)
    assert found.coverage_risk == coverage_risk(teacher.drawn, student)
    excess = excess_accumulated_error(
        *(compare(each, student, teacher.expert) for each in (drawn, teacher.drawn))
    )
    assert found.excess_accumulated_error == excess.tolist()


def test_a_student_that_is_its_teacher_shows_no_exposure_bias(
    tiny_task, student, own, make_teacher
):
    found = exposure(student, own, tiny_task.train, tiny_task.tokenizer, make_teacher(student))
    for positions in found.positions.values():
        assert set(positions.agreement) == {1.0}
        assert positions.divergence == pytest.approx([0.0] * len(positions.count), abs=1e-6)
    assert len({each.bleu for each in found.teacher_finishes}) == 1
    assert found.likelihood_risk == pytest.approx(found.coverage_risk, rel=0.2)  # other draws


def test_draws_are_the_same_whenever_it_is_measured(
    tiny_task, student, own, make_teacher, tiny_teacher
):
    one, again = (
        exposure(student, own, tiny_task.train, tiny_task.tokenizer, make_teacher(tiny_teacher))
        for _ in range(2)
    )
    assert one == again


def test_a_teacher_of_the_first_pairs_is_asked_about_these_alone(
    tiny_task, student, own, make_teacher, tiny_teacher
):
    teacher = make_teacher(tiny_teacher, 10)
    found = exposure(student, own, tiny_task.train, tiny_task.tokenizer, teacher)
    assert found.teacher_pairs == 10
    assert found.positions["own"].count[0] == 10
    assert sum(group.pairs for group in found.bleu_by_source_length) == len(tiny_task.train)


def test_without_a_teacher_its_instruments_are_none_and_not_zero(tiny_task, student, own):
    found = asdict(exposure(student, own, tiny_task.train, tiny_task.tokenizer, None))
    assert {name for name, value in found.items() if value is None} == BESIDE_TEACHER
    assert set(figures_while_training(own, student, None)) == {"length_ratio", "repetition_rate"}


def test_figures_while_training_are_the_means_of_the_same_instruments(
    tiny_task, student, own, make_teacher, tiny_teacher
):
    teacher = make_teacher(tiny_teacher)
    figures = figures_while_training(own, student, teacher.expert)
    found = exposure(student, own, tiny_task.train, tiny_task.tokenizer, teacher)
    for who in ("gold", "own"):
        positions = found.positions[who]
        for figure in ("agreement", "divergence"):
            weighted = zip(getattr(positions, figure), positions.count, strict=True)
            mean = sum(value * count for value, count in weighted) / sum(positions.count)
            assert figures[f"{who}_{figure}"] == pytest.approx(mean)
    assert figures["length_ratio"] == found.length_ratio
    assert figures["repetition_rate"] == found.repetition_rate
