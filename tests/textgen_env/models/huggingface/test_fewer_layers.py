"""Pretrained students that begin with layers of a pretrained teacher, for every family."""

import copy
import json

import pytest
import torch
from torch import nn

from tests.support.pretrained import FAMILIES, SLIDING, TEXTS, save_family
from textgen_env.generation.decoding import greedy
from textgen_env.models.hybrid import HybridConfig
from textgen_env.models.layer_copy import student_from_layers
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.teacher_layers import TeacherLayers, TeacherLayersError
from textgen_env.tasks.task import encode_sources

WITH_LAYERS = {**FAMILIES, "mistral": SLIDING}
ACTIONS = torch.tensor([[6, 7, 8], [9, 10, 11], [12, 13, 14], [15, 16, 17], [18, 19, 20]])
CHOICES = [
    pytest.param({"decoder": 1}, id="last"),
    pytest.param({"decoder_indices": (0,)}, id="first"),
]


@pytest.fixture(scope="module", params=WITH_LAYERS)
def loaded(request, tmp_path_factory):
    """Return a model of two layers a side, sources for it, and its tokenizer."""
    folder = save_family(WITH_LAYERS[request.param], tmp_path_factory.mktemp("models") / "teacher")
    tokenizer = load_tokenizer(folder)
    return load_model(folder, torch.float64), encode_sources(TEXTS, tokenizer), tokenizer


@pytest.fixture
def teacher(loaded):
    return loaded[0]


@pytest.fixture
def source(loaded):
    return loaded[1]


def layers_of(stack):
    (found,) = [child for child in stack.children() if isinstance(child, nn.ModuleList)]
    return found


def with_one_layer(teacher, index):
    """Return a copy of `teacher` whose decoder, and encoder if it has one, is one of its layers."""
    teacher = copy.deepcopy(teacher)
    model = teacher.model
    stacks = [model.get_decoder(), *([model.get_encoder()] * model.config.is_encoder_decoder)]
    for stack in stacks:
        layers = layers_of(stack)
        for other in range(len(layers)):
            if other != index and teacher.config.model_type == "t5":
                give_bias(layers[0].layer[0].SelfAttention, layers[index].layer[0].SelfAttention)
        kept = layers[index]
        while len(layers):
            del layers[0]
        layers.append(kept)
    if not model.config.is_encoder_decoder:
        model.config.num_hidden_layers = 1
    return teacher


def give_bias(first, other):
    """Give the distances of T5's first layer to another one."""
    other.relative_attention_bias = first.relative_attention_bias
    other.has_relative_attention_bias = True


def options_for(teacher, options):
    """Return the layers to choose, the same of an encoder if there is one."""
    if not teacher.model.config.is_encoder_decoder:
        return TeacherLayers(**options)
    both = {name.replace("decoder", "encoder"): value for name, value in options.items()}
    return TeacherLayers(**options, **both)


@torch.no_grad()
def test_all_layers_make_a_student_that_writes_the_teachers_texts(teacher, source):
    student = student_from_layers(teacher, TeacherLayers())
    texts = greedy(teacher, source, 8)
    assert len({tuple(text) for text in texts.tolist()}) > 1
    assert torch.equal(greedy(student, source, 8), texts)
    found = student.sequence_logits(source, ACTIONS)
    assert torch.equal(found, teacher.sequence_logits(source, ACTIONS))


@torch.no_grad()
@pytest.mark.parametrize("options", CHOICES)
def test_a_student_of_one_layer_is_the_teacher_without_the_others(teacher, source, options):
    student = student_from_layers(teacher, options_for(teacher, options))
    expected = with_one_layer(teacher, 1 if "decoder" in options else 0)
    logits = expected.sequence_logits(source, ACTIONS)
    assert (logits - teacher.sequence_logits(source, ACTIONS)).abs().max() > 0.1
    torch.testing.assert_close(student.sequence_logits(source, ACTIONS), logits)


@torch.no_grad()
@pytest.mark.parametrize("options", CHOICES)
def test_steps_of_a_student_give_the_logits_of_the_whole_sequence(teacher, source, options):
    student = student_from_layers(teacher, options_for(teacher, options))
    cache, previous = student.start(source, 3), torch.full((len(source),), student.special.start)
    logits = []
    for action in ACTIONS.unbind(1):
        step, cache = student.step(previous, cache)
        logits.append(step)
        previous = action
    torch.testing.assert_close(torch.stack(logits, 1), student.sequence_logits(source, ACTIONS))


@torch.no_grad()
def test_a_student_is_loaded_as_it_was_saved(loaded, tmp_path):
    teacher, source, tokenizer = loaded
    student = student_from_layers(teacher, options_for(teacher, {"decoder": 1}))
    save_model(student, tmp_path / "student", tokenizer)
    again = load_model(tmp_path / "student", torch.float64)
    assert again.config == student.config
    found = again.sequence_logits(source, ACTIONS)
    torch.testing.assert_close(found, student.sequence_logits(source, ACTIONS))


def test_what_a_student_learns_leaves_its_teacher_as_it_is(teacher):
    before = {name: weight.clone() for name, weight in teacher.model.state_dict().items()}
    student = student_from_layers(teacher, options_for(teacher, {"decoder": 1}))
    with torch.no_grad():
        for weight in (*student.parameters(), *student.buffers()):
            weight.fill_(1)
    for name, weight in teacher.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def changed(folder, **fields):
    """Return the model in `folder` with other fields of its configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return load_model(folder)


@torch.no_grad()
def test_each_layer_keeps_its_own_kind_of_attention(tmp_path):
    folder = save_family(FAMILIES["qwen2"], tmp_path / "teacher")
    kinds = ["full_attention", "sliding_attention"]
    teacher = changed(folder, layer_types=kinds, use_sliding_window=True, sliding_window=2)
    source = encode_sources(TEXTS, load_tokenizer(folder))
    student = student_from_layers(teacher, TeacherLayers(decoder=1))
    assert student.model.config.layer_types == kinds[1:]
    without_window = student_from_layers(teacher, TeacherLayers(decoder_indices=(0,)))
    assert without_window.model.config.layer_types == kinds[:1]
    save_model(student, tmp_path / "student", load_tokenizer(folder))
    found = load_model(tmp_path / "student").sequence_logits(source, ACTIONS)
    torch.testing.assert_close(found, student.sequence_logits(source, ACTIONS))


def test_layers_that_depend_on_their_place_are_refused(tmp_path):
    folder = save_family(FAMILIES["gpt2"], tmp_path / "teacher")
    teacher = changed(folder, scale_attn_by_inverse_layer_idx=True)
    assert student_from_layers(teacher, TeacherLayers(decoder_indices=(0,))).vocab_size > 0
    with pytest.raises(TeacherLayersError, match=r"some in transformer\.h that depend on their"):
        student_from_layers(teacher, TeacherLayers(decoder=1))


@pytest.mark.parametrize("family", ["marian", "t5", "gpt2"])
def test_a_student_has_the_dropout_that_it_is_given(family, tmp_path):
    teacher = load_model(save_family(FAMILIES[family], tmp_path / "teacher"))
    student = student_from_layers(teacher, TeacherLayers(dropout=0.25)).model
    rates = [part.p for part in student.modules() if isinstance(part, nn.Dropout)]
    rates += [vars(part)["dropout"] for part in student.modules() if "fc1" in part._modules]
    assert 0.25 in rates
    assert set(rates) <= {0.0, 0.25}


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [
        ("marian", {"encoder": 3}, "encoder must be at most 2, the number of the teacher's"),
        ("marian", {"decoder_indices": (2,)}, "decoder_indices must be below 2"),
        ("llama", {"decoder": 3}, "decoder must be at most 2"),
        ("llama", {"encoder": 1}, "encoder must be left out for a causal model"),
        ("llama", {"encoder_indices": (0, 1)}, "encoder must be left out for a causal model"),
        ("llama", {"dropout": 0.1}, "dropout must be left out for a model without dropout"),
    ],
)
def test_what_the_teacher_does_not_have_is_refused(family, layers, message, tmp_path):
    teacher = load_model(save_family(FAMILIES[family], tmp_path / "teacher"))
    with pytest.raises(TeacherLayersError, match=message):
        student_from_layers(teacher, TeacherLayers(**layers))


def test_a_pretrained_teacher_has_students_of_its_own_kind_alone(tmp_path):
    teacher = load_model(save_family(FAMILIES["llama"], tmp_path / "teacher"))
    layers = TeacherLayers(decoder=1)
    assert student_from_layers(teacher, layers, teacher.config).config == teacher.config
    with pytest.raises(TeacherLayersError, match="student must be left out"):
        student_from_layers(teacher, layers, HybridConfig())
