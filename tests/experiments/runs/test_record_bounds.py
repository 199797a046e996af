"""Tests that no configuration accepts a number that makes no sense."""

import math
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest

from textgen_agents.training.learner import LearnerConfig
from textgen_env.generation.beam_search import BeamSearch
from textgen_env.models import TransformerConfig
from textgen_experiments.benchmarks.decode import BenchmarkDecodeOptions
from textgen_experiments.benchmarks.env import BenchmarkEnvOptions
from textgen_experiments.benchmarks.losses import BenchmarkLossesOptions
from textgen_experiments.benchmarks.peers.compare import BenchmarkPeersOptions
from textgen_experiments.benchmarks.step_floor import BenchmarkOptions
from textgen_experiments.evaluation.evaluate import EvaluateOptions
from textgen_experiments.models.export import ExportOptions
from textgen_experiments.models.generate import GenerateOptions
from textgen_experiments.recipes.recovery import RecoveryOptions
from textgen_experiments.recipes.study import StudyOptions
from textgen_experiments.reporting.report import ReportOptions
from textgen_experiments.runs.records import records

OPTIONS = (
    BeamSearch,
    BenchmarkDecodeOptions,
    BenchmarkEnvOptions,
    BenchmarkLossesOptions,
    BenchmarkOptions,
    BenchmarkPeersOptions,
    EvaluateOptions,
    ExportOptions,
    GenerateOptions,
    RecoveryOptions,
    ReportOptions,
    StudyOptions,
)
REQUIRED = {
    "path": "d",
    "format": "hf",
    "model": Path("m"),
    "model_type": "t5",
    "runs": (Path("r"),),
    "models": (Path("r"),),
    "tokenizer": Path("t"),
    "train": Path("t.tsv"),
    "url": "http://localhost/v1",
    "vocab_size": 8,
    "width": 8,
}
ANY_SIGN = {"seed"}
MAY_BE_INFINITE = {"clip", "ratio_clip", "threshold", "factor", "checkpoint_every"}


def numeric_fields():
    """Return each record with each of its fields that is a number."""
    found = []
    for kind in sorted({*records().values(), *OPTIONS}, key=lambda kind: kind.__name__):
        for field in fields(kind):
            kinds = set(get_args(field.type) or (field.type,)) - {NoneType}
            if kinds in ({int}, {float}):
                name = f"{kind.__name__}.{field.name}"
                found.append(pytest.param(kind, field.name, kinds.pop(), id=name))
    return found


def with_value(kind, name, value):
    """Return a record of `kind` whose field `name` is `value`."""
    needed = {
        field.name: REQUIRED[field.name]
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    }
    return kind(**{**needed, name: value})


@pytest.mark.parametrize(("kind", "name", "number"), numeric_fields())
def test_every_record_refuses_numbers_that_make_no_sense(kind, name, number):
    with_value(kind, name, REQUIRED.get(name, getattr(kind, name, None)))
    refused = [math.nan, -math.inf]
    refused += [] if name in MAY_BE_INFINITE else [math.inf]
    refused += [] if name in ANY_SIGN else [-1]
    refused += [2.5, 2**70, True, "1"] if number is int else []
    for value in refused:
        with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
            with_value(kind, name, value)


def test_infinity_is_accepted_where_it_has_a_meaning():
    assert LearnerConfig(clip=math.inf).clip == math.inf


@pytest.mark.parametrize("name", ["num_heads", "feed_forward", "num_encoder_layers", "vocab_size"])
def test_models_without_a_part_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
        TransformerConfig(**{name: 0})
