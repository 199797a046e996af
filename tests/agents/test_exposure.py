"""The student beside the teacher on prefixes of either, against sums made state by state."""

import pytest
import torch

from agents.exposure import Comparison, compare, excess_accumulated_error, written_by
from textgen_env.decoding import decode_all
from textgen_env.expert import NeuralExpert
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories, Writer


@pytest.fixture
def gold(tiny_task):
    return Trajectories.from_examples(
        encode(tiny_task.train, tiny_task), tiny_task.tokenizer.special
    )


def test_figures_are_means_over_the_states_of_each_position(gold, tiny_student, tiny_teacher):
    found = compare(gold, tiny_student, NeuralExpert(tiny_teacher))
    with torch.no_grad():
        student, teacher = (
            model.sequence_logits(gold.source, gold.actions).double().log_softmax(-1)
            for model in (tiny_student, tiny_teacher)
        )
    by_position = [[] for _ in range(gold.actions.shape[1])]
    for row, column in gold.mask.nonzero().tolist():
        p, q = teacher[row, column], student[row, column]
        same = float(p[2:].argmax() == q[2:].argmax())  # padding and start are never written
        by_position[column].append((same, float((p.exp() * (p - q)).sum())))
    for column, figures in enumerate(by_position):
        assert found.count[column] == len(figures)
        agreement, divergence = torch.tensor(figures or [(0.0, 0.0)]).mean(0).tolist()
        assert found.agreement[column].item() == pytest.approx(agreement)
        assert found.divergence[column].item() == pytest.approx(divergence, rel=1e-4)
    every = [figure for figures in by_position for figure in figures]
    assert found.mean_agreement == pytest.approx(sum(same for same, _ in every) / len(every))
    assert found.mean_divergence == pytest.approx(sum(kl for _, kl in every) / len(every), rel=1e-4)


def test_who_is_compared_with_himself_agrees(gold, tiny_teacher):
    found = compare(gold, tiny_teacher, NeuralExpert(tiny_teacher))
    assert found.mean_agreement == 1
    assert found.mean_divergence == pytest.approx(0, abs=1e-6)


def test_the_batch_size_does_not_matter(gold, tiny_student, tiny_teacher):
    expert = NeuralExpert(tiny_teacher)
    one, many = (compare(gold, tiny_student, expert, batch_size=size) for size in (1, 64))
    assert torch.equal(one.count, many.count)
    assert torch.equal(one.agreement, many.agreement)
    torch.testing.assert_close(one.divergence, many.divergence, rtol=1e-5, atol=1e-7)


def test_prefixes_of_a_model_are_what_it_writes_greedily(tiny_task, tiny_student):
    examples = encode(tiny_task.train, tiny_task)
    written = written_by(tiny_student, examples, 5, writer=Writer.STUDENT)
    assert torch.equal(written.actions, decode_all(tiny_student, examples.source, 5))
    assert written.writer[written.mask].eq(Writer.STUDENT).all()
    assert written.mask.any(1).all()


def comparison(divergence):
    divergence = torch.tensor(divergence, dtype=torch.float64)
    return Comparison(torch.ones_like(divergence), torch.zeros_like(divergence), divergence)


def test_errors_that_accumulate_on_the_students_prefixes_by_hand():
    own, teachers = comparison([1.0, 3.0, 5.0]), comparison([1.0, 1.0, 1.0, 9.0])
    error = excess_accumulated_error(own, teachers)
    assert error.tolist() == [0, 100, 200]  # 1/1, 4/2 and 9/3
    assert excess_accumulated_error(teachers, teachers).eq(0).all()
