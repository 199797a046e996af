"""What a run's files must hold for the page to be made: which fields are numbers, which are texts.

Fields that the page does not read are not looked at. A figure that it can do without may be null or
missing, which is a gap; reading has made NaN and the infinities null.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Fits = Callable[[Any], bool]
"""Whether a value, None where there is none, is what it should be."""


class Kind(NamedTuple):
    """A kind of value: in words, and as a question."""

    rule: str
    fits: Fits


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _or_null(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _list_of(fits: Fits) -> Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _object_of(fields: Mapping[str, Fits]) -> Fits:
    return lambda value: (
        isinstance(value, dict) and all(fits(value.get(name)) for name, fits in fields.items())
    )


_figure = _or_null(_number)
_measures = {"agreement": _list_of(_figure), "divergence": _list_of(_figure)}
_curves = _object_of({**_measures, "count": _list_of(_number)})
_groups = _list_of(_object_of({"up_to": _figure, "bleu": _figure}))


def _by_position(value: Mapping[str, Any] | None) -> bool:
    """Whether these are curves as long as each other for each writer of the prefixes."""
    writers = _object_of(dict.fromkeys(("reference", "student", "teacher"), _or_null(_curves)))
    return value is None or (
        writers(value)
        and all(len({*map(len, curves.values())}) == 1 for curves in value.values() if curves)
    )


def _by_length(value: list[Any] | None) -> bool:
    """Whether these are groups of which only the last one has no limit."""
    return value is None or (
        _groups(value) and all(group["up_to"] is not None for group in value[:-1])
    )


NUMBER = Kind("a number", _number)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
FIGURE = Kind("a number or null", _figure)
TEXT = Kind("a text", _text)
LABEL = Kind("a text or null", _or_null(_text))

ROW: Mapping[str, Kind] = {
    **dict.fromkeys(
        (
            *("bleu_confidence", "p_value", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"),
            *("tokenized_lowercase_bleu", "sentences_per_second", "parameters", "train_pairs"),
            *("train_seconds", "teacher_tokens_queried"),
        ),
        FIGURE,
    ),
    **dict.fromkeys(("baseline", "precision"), LABEL),
    "signature": TEXT,
    "bleu": NUMBER,
    "tokens_per_second": POSITIVE,
    "speedup_vs_teacher": POSITIVE,
    "beam": Kind(
        "null or a size and a bleu", _or_null(_object_of({"size": _figure, "bleu": _figure}))
    ),
}
"""Of a row of `results.json`."""
SAMPLE: Mapping[str, Kind] = {
    **dict.fromkeys(("source", "reference", "hypothesis"), TEXT),
    "teacher": LABEL,
}
"""Of a line of `samples.jsonl`."""
TASK: Mapping[str, Kind] = {"name": TEXT, "test_pairs": NUMBER}
"""Of what `results.json` says of the task."""
EXPOSURE: Mapping[str, Kind] = {
    **dict.fromkeys(
        ("length_ratio", "repetition_rate", "likelihood_risk", "coverage_risk"), FIGURE
    ),
    "positions": Kind("null or curves by position", _by_position),
    "excess_accumulated_error": Kind(
        "null or a list of numbers and nulls", _or_null(_list_of(_figure))
    ),
    "teacher_finishes": Kind(
        "null or a list of a share and a bleu each",
        _or_null(_list_of(_object_of({"share": _number, "bleu": _figure}))),
    ),
    **dict.fromkeys(
        ("bleu_by_reference_length", "bleu_by_source_length"),
        Kind("null or groups with up_to and bleu", _by_length),
    ),
}
"""Of `exposure.json`."""


def check(value: object, fields: Mapping[str, Kind]) -> None:
    """Raise unless `value` is an object with these fields.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, dict):
        raise ValueError(f"value must be an object, got {value!r}")
    for name, kind in fields.items():
        if not kind.fits(value.get(name)):
            raise ValueError(f"{name} must be {kind.rule}, got {value.get(name)!r}")


def check_record(value: object) -> None:
    """Raise unless `value` is a line of `metrics.jsonl`: figures, and the update they are of.

    Raises:
        ValueError: it is not.
    """
    check(value, {})
    assert isinstance(value, dict), "it was checked"
    check(value, {**dict.fromkeys(value, FIGURE), "update": NUMBER})
