"""The functions that become graphs: the same logits as the model's own steps."""

import pytest
import torch

from tests.support.export_models import sources
from tests.support.export_students import STUDENTS_BY_NAME
from textgen_env.generation.decoding import greedy
from textgen_env.models.export.common import SUPPRESSION_BIAS, ExportError
from textgen_env.models.export.onnx.graphs import EncoderGraph, StepGraph, graphs_of

STEPS = 6


def first_tensors(name, model, graphs, source):
    """Return memory and states before the first step; ONNX alone has a recurrent encoder."""
    if name != "recurrent":
        return EncoderGraph(graphs)(source)
    cache = model.start(source, STEPS)
    return cache.source_keys, cache.source_values, cache.source_bias, *cache.states


@pytest.mark.parametrize("name", STUDENTS_BY_NAME)
def test_a_graph_has_the_logits_of_the_model_except_those_of_padding_and_start(name):
    model = STUDENTS_BY_NAME[name]()
    graphs, source, num_states = graphs_of(model), sources(5), 0
    step, memory = StepGraph(graphs, model.special, 64), len(graphs.memory)
    with torch.no_grad():
        tokens, cache = greedy(model, source, STEPS), model.start(source, STEPS)
        tensors = first_tensors(name, model, graphs, source)
        previous = torch.full_like(tokens[:, 0], model.special.start)
        for chosen in tokens.unbind(1):
            expected, cache = model.step(previous, cache)
            logits, *states = step(previous, *tensors)
            expected[:, [0, 1]] += SUPPRESSION_BIAS
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
            tensors, num_states = (*tensors[:memory], *states), len(states)
            previous = chosen
    assert num_states == len(graphs.states)


def test_tensors_have_their_free_dimensions_where_they_are_named():
    graphs = graphs_of(STUDENTS_BY_NAME["sru_pp"]())
    source = sources(3)
    sizes = {"batch": 3, "source_length": source.shape[1], "target_length": 0}
    tensors = graphs.encode(source)
    assert sorted(tensors) == sorted({**graphs.memory, **graphs.states})
    for name, axes in {**graphs.memory, **graphs.states}.items():
        for axis, size in axes.items():
            assert tensors[name].shape[axis] == sizes[size], name


def test_what_is_no_student_of_this_project_is_refused():
    with pytest.raises(ExportError, match="must be a recurrent, hybrid or Transformer student"):
        graphs_of(torch.nn.Linear(2, 2))
