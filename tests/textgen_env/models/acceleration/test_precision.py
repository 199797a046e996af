"""Tests of the measurement of precisions."""

import json
import time
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from textgen_env.models.acceleration import precision
from textgen_env.models.acceleration.precision import (
    MeasuredPrecision,
    measure_precision,
    onednn_float32,
)

MEASURED = MeasuredPrecision(name="float32", float32=100.0, float32_onednn=200.0, bfloat16=50.0)


def test_both_precisions_are_measured():
    start = time.perf_counter()
    measured = measure_precision(32, rows=4)
    assert time.perf_counter() - start < 5
    assert measured.float32 > 0
    assert measured.bfloat16 > 0
    assert measured.dtype == getattr(torch, measured.name)
    json.dumps(asdict(measured))


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        ({"float32": 1.0, "bfloat16": 0.5}, "bfloat16"),
        ({"float32": 1.0, "bfloat16": 0.9}, "float32"),
        ({"float32": 1.0, "bfloat16": 2.0}, "float32"),
        ({"float32": 1.0, "float32_onednn": 0.5, "bfloat16": 0.5}, "float32"),
        ({"float32": 1.0, "float32_onednn": 0.5, "bfloat16": 0.3}, "bfloat16"),
    ],
)
def test_bfloat16_is_chosen_if_it_is_clearly_faster(monkeypatch, seconds, name):
    monkeypatch.setattr(precision, "_fewest_seconds", lambda runs, device: seconds)
    measured = measure_precision(16, rows=2)
    assert measured.name == name
    flops = 2 * 2 * (16 * 2) * 16 * 32  # 16 products of 2 rows, one of 32 rows
    assert measured.float32 == pytest.approx(flops / 1e9)
    assert measured.bfloat16 == pytest.approx(flops / seconds["bfloat16"] / 1e9)
    assert measured.onednn == ("float32_onednn" in seconds)


def test_onednn_is_left_out_where_it_rounds(monkeypatch):
    linear = F.linear

    def rounding(hidden, weight):
        if torch.backends.mkldnn.matmul.fp32_precision == "bf16":
            return linear(hidden.bfloat16(), weight.bfloat16()).float()
        return linear(hidden, weight)

    monkeypatch.setattr(precision.F, "linear", rounding)
    measured = measure_precision(32, rows=4)
    assert measured.float32_onednn is None
    assert not measured.onednn


def test_the_faster_float32_is_known():
    assert MEASURED.onednn
    assert not replace(MEASURED, float32_onednn=90.0).onednn
    assert not replace(MEASURED, float32_onednn=None).onednn


def test_the_setting_holds_within_only():
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with onednn_float32(False):
        assert settings.fp32_precision == before
    with onednn_float32(True):
        assert settings.fp32_precision == "bf16"
    assert settings.fp32_precision == before


def test_measuring_touches_no_global_state():
    state, before = torch.get_rng_state(), torch.backends.mkldnn.matmul.fp32_precision
    measure_precision(16, rows=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("change", [{"width": 0}, {"rows": 0}])
def test_wrong_sizes_are_refused(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        measure_precision(**{"width": 8, **change})
