"""Schema of the files of a run that the page reads: rules for the values of their fields.

Fields that the page does not read are not checked. A figure that the page can do without may be
null or missing, which is a gap; NaN and infinities are null once a file is read.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Json = dict[str, Any]
"""An object of a JSON file, or a figure of plotly.js."""

Fits = Callable[[Any], bool]
"""Predicate of a value; a missing value is None."""


class FieldRule(NamedTuple):
    """Rule for the value of a field, in words and as a predicate."""

    rule: str
    fits: Fits


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _or_null(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _list_of(fits: Fits) -> Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _object_of(fields: Mapping[str, Fits]) -> Fits:
    return lambda value: (
        isinstance(value, dict) and all(fits(value.get(name)) for name, fits in fields.items())
    )


_figure = _or_null(_is_number)
_measures = {"agreement": _list_of(_figure), "divergence": _list_of(_figure)}
_later = dict.fromkeys(  # measures that evaluations of earlier versions lack
    ("top_k_overlap", "shared_mass", "entropy_gap"), _or_null(_list_of(_figure))
)
_curves = _object_of({**_measures, **_later, "count": _list_of(_is_number)})


def _by_position(value: Mapping[str, Any] | None) -> bool:
    """Return True if each writer of prefixes has curves of one length, or none."""
    writers = _object_of(dict.fromkeys(("reference", "student", "teacher"), _or_null(_curves)))
    return value is None or (
        writers(value)
        and all(
            len({len(curve) for curve in curves.values() if curve is not None}) == 1
            for curves in value.values()
            if curves
        )
    )


NUMBER = FieldRule("a number", _is_number)
POSITIVE = FieldRule("a number above 0", lambda value: _is_number(value) and value > 0)
FIGURE = FieldRule("a number or null", _figure)
ANY_TEXT = FieldRule("a text", _is_text)
TEXT_OR_NULL = FieldRule("a text or null", _or_null(_is_text))

ROW_FIELDS: Mapping[str, FieldRule] = {
    **dict.fromkeys(
        (
            *("bleu_confidence", "p_value", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"),
            *("tokenized_lowercase_bleu", "sentences_per_second", "parameters", "train_pairs"),
            *("train_sources", "train_seconds", "teacher_tokens_queried"),
            *("acceptance", "tokens_per_pass"),
        ),
        FIGURE,
    ),
    **dict.fromkeys(("baseline", "precision"), TEXT_OR_NULL),
    "signature": ANY_TEXT,
    "bleu": NUMBER,
    "tokens_per_second": POSITIVE,
    "speedup_vs_teacher": POSITIVE,
    "beam": FieldRule(
        "null or a size and a bleu", _or_null(_object_of({"size": _figure, "bleu": _figure}))
    ),
}
"""Fields of a row of `results.json`."""
SAMPLE_FIELDS: Mapping[str, FieldRule] = {
    **dict.fromkeys(("source", "reference", "hypothesis"), ANY_TEXT),
    "teacher": TEXT_OR_NULL,
}
"""Fields of a line of `samples.jsonl`."""
TASK_FIELDS: Mapping[str, FieldRule] = {"name": ANY_TEXT, "test_pairs": NUMBER}
"""Fields of the task in `results.json`."""
ORIGIN_FIELDS: Mapping[str, FieldRule] = dict.fromkeys(("commit", "command"), TEXT_OR_NULL)
"""Fields of `config.json` about the program that began the run."""
EXPOSURE_FIELDS: Mapping[str, FieldRule] = {
    **dict.fromkeys(
        ("length_ratio", "repetition_rate", "likelihood_risk", "coverage_risk"), FIGURE
    ),
    "positions": FieldRule("null or curves by position", _by_position),
    "excess_accumulated_error": FieldRule(
        "null or a list of numbers and nulls", _or_null(_list_of(_figure))
    ),
    "teacher_finishes": FieldRule(
        "null or a list of a share and a bleu each",
        _or_null(_list_of(_object_of({"share": _is_number, "bleu": _figure}))),
    ),
}
"""Fields of `exposure.json`."""


def check(value: object, fields: Mapping[str, FieldRule]) -> None:
    """Raise unless `value` is an object with these fields.

    Raises:
        ValueError: it is no object, or a field breaks its rule.
    """
    if not isinstance(value, dict):
        raise ValueError(f"value must be an object, got {value!r}")
    for name, field in fields.items():
        if not field.fits(value.get(name)):
            raise ValueError(f"{name} must be {field.rule}, got {value.get(name)!r}")


def check_record(value: object) -> None:
    """Raise unless `value` is a line of `metrics.jsonl`: figures with the number of their update.

    Raises:
        ValueError: it is no object, a value is no figure, or the update is missing.
    """
    check(value, {})
    assert isinstance(value, dict), "it was checked"
    check(value, {**dict.fromkeys(value, FIGURE), "update": NUMBER})
