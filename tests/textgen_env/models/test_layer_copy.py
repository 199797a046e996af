import pytest
import torch
from torch import nn

from tests.support.toy import SPECIAL
from textgen_env.generation.decoding import greedy
from textgen_env.models.hybrid import Hybrid, HybridConfig
from textgen_env.models.layer_copy import student_from_layers
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import load_model, save_model
from textgen_env.models.teacher_layers import TeacherLayers, TeacherLayersError
from textgen_env.models.transformer import Transformer, TransformerConfig

SOURCE = torch.tensor([[5, 6, 7, 2], [8, 2, 0, 0], [3, 9, 2, 0]])
ACTIONS = torch.tensor([[4, 5, 6], [9, 2, 0], [7, 7, 2]])
EVEN = [
    (6, 1, (5,)),
    (6, 2, (0, 5)),
    (6, 3, (0, 2, 5)),
    (6, 4, (0, 2, 3, 5)),
    (6, 6, (0, 1, 2, 3, 4, 5)),
    (12, 3, (0, 6, 11)),
    (1, 1, (0,)),
]


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=12,
        width=16,
        num_heads=2,
        feed_forward=24,
        num_encoder_layers=4,
        num_decoder_layers=3,
        dropout=0.2,
    )
    return Transformer(config, SPECIAL).double().eval()


@pytest.mark.parametrize(("available", "count", "chosen"), EVEN)
def test_a_number_of_layers_is_spread_evenly(available, count, chosen):
    assert TeacherLayers(encoder=count).of_encoder(available) == chosen
    assert TeacherLayers(decoder=count).of_decoder(available) == chosen


def test_all_layers_make_a_student_that_writes_the_teachers_texts(teacher):
    student = student_from_layers(teacher, TeacherLayers())
    assert student.config == teacher.config
    assert torch.equal(
        student.sequence_logits(SOURCE, ACTIONS), teacher.sequence_logits(SOURCE, ACTIONS)
    )
    assert torch.equal(greedy(student, SOURCE, 9), greedy(teacher, SOURCE, 9))


def test_chosen_layers_are_those_of_the_teacher_in_their_order(teacher):
    layers = TeacherLayers(encoder_indices=(1, 3), decoder=2, dropout=0.05)
    student = student_from_layers(teacher, layers)
    teacher.encoder = nn.ModuleList([teacher.encoder[1], teacher.encoder[3]])
    teacher.decoder = nn.ModuleList([teacher.decoder[0], teacher.decoder[2]])
    found = student.sequence_logits(SOURCE, ACTIONS)
    assert torch.equal(found, teacher.sequence_logits(SOURCE, ACTIONS))
    assert (student.config.num_encoder_layers, student.config.num_decoder_layers) == (2, 2)
    assert student.config.dropout == 0.05
    assert {layer.dropout.probability for layer in (*student.encoder, *student.decoder)} == {0.05}


def test_what_the_student_learns_leaves_the_teacher_as_it_is(teacher):
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = student_from_layers(teacher, TeacherLayers(decoder=1))
    with torch.no_grad():
        for weight in student.parameters():
            weight.fill_(1.0)
    for name, weight in teacher.state_dict().items():
        assert torch.equal(weight, before[name])


def test_the_student_is_loaded_as_it_was_saved(teacher, tmp_path):
    student = student_from_layers(teacher, TeacherLayers(encoder=2, decoder=1))
    save_model(student, tmp_path / "student")
    loaded = load_model(tmp_path / "student", torch.float64)
    found = loaded.sequence_logits(SOURCE, ACTIONS)
    assert torch.equal(found, student.sequence_logits(SOURCE, ACTIONS))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"encoder": 5}, "encoder must be at most 4, the number of the teacher's encoder layers"),
        ({"decoder": 4}, "decoder must be at most 3, the number of the teacher's decoder layers"),
        ({"encoder_indices": (0, 4)}, "encoder_indices must be below 4"),
        ({"decoder_indices": (3,)}, "decoder_indices must be below 3"),
    ],
)
def test_layers_that_the_teacher_does_not_have_are_refused(teacher, layers, message):
    with pytest.raises(TeacherLayersError, match=message):
        student_from_layers(teacher, TeacherLayers(**layers))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"encoder": 0}, "encoder must be at least 1"),
        ({"encoder": 2, "encoder_indices": (0, 1)}, "must not both be given"),
        ({"decoder_indices": ()}, "at least one"),
        ({"decoder_indices": (1, 0)}, "ascend"),
        ({"decoder_indices": (1, 1)}, "ascend"),
        ({"encoder_indices": (-1, 1)}, "at least 0"),
        ({"encoder_indices": (0.5,)}, "whole numbers"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 0.99\]"),
    ],
)
def test_layers_that_no_teacher_has_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        TeacherLayers(**layers)


def test_a_teacher_without_such_layers_is_refused():
    teacher = Recurrent(RecurrentConfig(vocab_size=12, width=8), SPECIAL)
    with pytest.raises(TeacherLayersError, match="got a teacher of kind Recurrent"):
        student_from_layers(teacher, TeacherLayers())


class Silent(nn.Module):
    """Sublayer that adds nothing."""

    def forward(self, hidden, *others):
        return torch.zeros_like(hidden)


def test_a_hybrid_is_its_teacher_but_for_what_stands_in_place_of_self_attention(teacher):
    layers = TeacherLayers(encoder=2, decoder_indices=(0, 2))
    student = student_from_layers(teacher, layers, HybridConfig(unit="gru", width=16))
    plain = student_from_layers(teacher, layers)
    assert isinstance(student, Hybrid)
    before = student.sequence_logits(SOURCE, ACTIONS)
    for layer, own in zip(student.decoder, plain.decoder, strict=True):
        layer.unit, own.attention = Silent(), Silent()
        own.attention.project = lambda hidden, positions: (hidden, hidden)
    expected = plain.sequence_logits(SOURCE, ACTIONS)
    assert torch.equal(student.sequence_logits(SOURCE, ACTIONS), expected)
    assert (before - expected).abs().max() > 0.01


def test_the_units_of_a_hybrid_are_those_of_the_seed_and_are_copied_from_a_hybrid(teacher):
    students = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        students.append(student_from_layers(teacher, TeacherLayers(decoder=1), HybridConfig()))
    one, same, other = (student.state_dict() for student in students)
    assert all(torch.equal(weight, same[name]) for name, weight in one.items())
    different = {name for name, weight in one.items() if not torch.equal(weight, other[name])}
    assert different
    assert all(name.startswith("decoder.0.unit.") for name in different)
    again = student_from_layers(students[0], TeacherLayers(encoder=4)).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in one.items())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (RecurrentConfig(width=16), "student must be of the teacher's kind or a hybrid"),
        (TransformerConfig(dropout=0.3), "student.dropout must be left out"),
        (HybridConfig(width=32), "student.width must be left out .* makes it 16, got 32"),
    ],
)
def test_a_student_of_another_kind_or_size_is_refused(teacher, kind, message):
    with pytest.raises(TeacherLayersError, match=message):
        student_from_layers(teacher, TeacherLayers(), kind)


def test_sizes_that_were_made_make_the_same_student(teacher):
    layers = TeacherLayers(encoder=2, decoder=1, dropout=0.3)
    made = student_from_layers(teacher, layers).config
    assert student_from_layers(teacher, layers, made).config == made
