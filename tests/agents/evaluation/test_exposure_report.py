"""All diagnostics of one student: each is that of its function, or None without a teacher."""

from dataclasses import asdict
from functools import partial

import pytest
import torch

from textgen_agents.evaluation.exposure_bias import (
    compare_with_teacher,
    coverage_risk,
    excess_accumulated_error,
    likelihood_risk,
    written_by,
)
from textgen_agents.evaluation.exposure_report import (
    DRAW_SEED,
    NUM_DRAWS,
    STUDENT_SHARES,
    ExposureBiasReport,
    TeacherTexts,
    measure_exposure_bias,
)
from textgen_agents.evaluation.quality import bleu, bleu_by_length
from textgen_agents.rollouts.batches import generator_for
from textgen_env.experts.expert import NeuralExpert
from textgen_env.generation.decoding import sample
from textgen_env.generation.sampling import Sampling
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories, Writer

NEED_TEACHER = {
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
def student_texts(student, tiny_task, examples):
    return written_by(student, examples, tiny_task.max_target_length, writer=Writer.STUDENT)


@pytest.fixture
def make_teacher(tiny_task, examples):
    """Return a function from a model and a number of pairs to the teacher with its texts."""

    def make(model, count=64):
        steps = tiny_task.max_target_length
        some = examples.select(examples.source.new_tensor(range(count)))
        return TeacherTexts.of(
            NeuralExpert(model), written_by(model, some, steps, writer=Writer.EXPERT)
        )

    return make


def test_every_diagnostic_is_computed_on_its_own_texts(
    tiny_task, student, student_texts, make_teacher, tiny_teacher
):
    teacher = make_teacher(tiny_teacher)
    pairs, tokenizer = tiny_task.train, tiny_task.tokenizer
    found = measure_exposure_bias(student, student_texts, pairs, tokenizer, teacher)
    reference = Trajectories.from_examples(encode(pairs, tiny_task), tokenizer.special)
    texts = {"reference": reference, "student": student_texts, "teacher": teacher.written}
    for writer, positions in found.positions.items():
        expected = compare_with_teacher(texts[writer], student, teacher.expert)
        seen = len(positions.count)
        assert positions.count == expected.count[:seen].tolist()
        assert positions.agreement == expected.agreement[:seen].tolist()
        assert positions.divergence == expected.divergence[:seen].tolist()
        assert positions.top_k_overlap == expected.top_k_overlap[:seen].tolist()
        assert positions.shared_mass == expected.shared_mass[:seen].tolist()
        assert positions.entropy_gap == expected.entropy_gap[:seen].tolist()
        assert sum(positions.count) == texts[writer].mask.sum()
    hypotheses, references = (
        tokenizer.decode(texts[writer].actions.tolist()) for writer in ("student", "reference")
    )
    by_teacher = tokenizer.decode(teacher.written.actions.tolist())
    finished = {each.share: each.bleu for each in found.teacher_finishes}
    assert tuple(finished) == (0.0, *STUDENT_SHARES, 1.0)
    assert finished[0.0] == bleu(by_teacher, references)
    assert finished[1.0] == bleu(hypotheses, references)
    assert found.bleu_by_source_length == bleu_by_length(hypotheses, references, references)
    assert found.teacher_pairs == len(pairs)
    drawn = drawn_by(student, encode(pairs, tiny_task), student_texts.actions.shape[1])
    ours, teachers = (
        compare_with_teacher(each, student, teacher.expert) for each in (drawn, teacher.drawn)
    )
    assert found.likelihood_risk == likelihood_risk(ours)
    assert found.coverage_risk == coverage_risk(teachers)
    excess = excess_accumulated_error(ours, teachers)
    assert found.excess_accumulated_error == excess.tolist()


def drawn_by(student, examples, steps):
    """Draw three texts for each source, each with a generator of its own."""
    parts = []
    for number in range(3):
        generator = generator_for(DRAW_SEED, "student draws", number)
        decoder = partial(sample, sampling=Sampling(), generator=generator)
        parts.append(written_by(student, examples, steps, writer=Writer.STUDENT, decoder=decoder))
    return Trajectories.cat(parts, student.special)


def test_the_teacher_draws_three_texts_a_source(make_teacher, tiny_teacher):
    drawn = make_teacher(tiny_teacher, 10).drawn
    assert NUM_DRAWS == 3
    texts = drawn.actions.view(3, 10, -1)
    assert torch.equal(drawn.source.view(3, 10, -1)[2], drawn.source[:10])
    assert all(not torch.equal(texts[i], texts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert drawn.writer[drawn.mask].eq(Writer.EXPERT).all()


def test_a_student_that_is_its_teacher_shows_no_exposure_bias(
    tiny_task, student, student_texts, make_teacher
):
    found = measure_exposure_bias(
        student, student_texts, tiny_task.train, tiny_task.tokenizer, make_teacher(student)
    )
    for positions in found.positions.values():
        assert set(positions.agreement) == {1.0}
        assert positions.divergence == pytest.approx([0.0] * len(positions.count), abs=1e-6)
    assert len({each.bleu for each in found.teacher_finishes}) == 1
    assert found.likelihood_risk == pytest.approx(found.coverage_risk, rel=0.2)  # other draws


def test_draws_are_the_same_at_every_measurement(
    tiny_task, student, student_texts, make_teacher, tiny_teacher
):
    one, again = (
        measure_exposure_bias(
            student, student_texts, tiny_task.train, tiny_task.tokenizer, make_teacher(tiny_teacher)
        )
        for _ in range(2)
    )
    assert one == again


def test_a_teacher_of_the_first_pairs_is_queried_about_these_alone(
    tiny_task, student, student_texts, make_teacher, tiny_teacher
):
    teacher = make_teacher(tiny_teacher, 10)
    found = measure_exposure_bias(
        student, student_texts, tiny_task.train, tiny_task.tokenizer, teacher
    )
    assert found.teacher_pairs == 10
    assert found.positions["student"].count[0] == 10
    assert sum(group.pairs for group in found.bleu_by_source_length) == len(tiny_task.train)


def test_without_a_teacher_its_diagnostics_are_none_and_not_zero(tiny_task, student, student_texts):
    found = asdict(
        measure_exposure_bias(student, student_texts, tiny_task.train, tiny_task.tokenizer, None)
    )
    assert {name for name, value in found.items() if value is None} == NEED_TEACHER
    figures = measure_exposure_bias(
        student, student_texts, tiny_task.train, tiny_task.tokenizer, None
    ).figures()
    assert set(figures) == {"length_ratio", "repetition_rate"}


def test_each_diagnostic_has_a_figure(
    tiny_task, student, student_texts, make_teacher, tiny_teacher
):
    teacher = make_teacher(tiny_teacher)
    found = measure_exposure_bias(
        student, student_texts, tiny_task.train, tiny_task.tokenizer, teacher, shares=(0.5,)
    )
    reference = Trajectories.from_examples(student_texts.examples, student.special)
    expected = {
        "length_ratio": found.length_ratio,
        "repetition_rate": found.repetition_rate,
        "likelihood_risk": found.likelihood_risk,
        "coverage_risk": found.coverage_risk,
    }
    for writer, texts in {
        "reference": reference,
        "student": student_texts,
        "teacher": teacher.written,
    }.items():
        compared = compare_with_teacher(texts, student, teacher.expert)
        expected[f"{writer}_prefix_agreement"] = compared.mean_agreement
        expected[f"{writer}_prefix_divergence"] = compared.mean(compared.divergence)
        expected[f"{writer}_prefix_top_k_overlap"] = compared.mean(compared.top_k_overlap)
        expected[f"{writer}_prefix_shared_mass"] = compared.mean(compared.shared_mass)
        expected[f"{writer}_prefix_entropy_gap"] = compared.mean(compared.entropy_gap)
    for share, each in zip(("0", "0.5", "1"), found.teacher_finishes, strict=True):
        expected[f"teacher_finishes_{share}"] = each.bleu
    figures = found.figures()
    assert figures.pop("excess_accumulated_error") in found.excess_accumulated_error
    assert figures == pytest.approx(expected)


@pytest.mark.parametrize(
    ("error", "expected"), [([1.0, 2.0, 3.0, 4.0], 4.0), ([1.0, 2.0, None], None)]
)
def test_the_figure_of_the_error_is_that_of_whole_texts(error, expected):
    """A value that is not finite gives no figure."""
    found = ExposureBiasReport(1.0, 0.0, [], [], excess_accumulated_error=error)
    assert found.figures().get("excess_accumulated_error") == expected
