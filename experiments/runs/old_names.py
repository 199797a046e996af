"""Names in the files of older runs, and the names of today."""

from typing import Any

RENAMED = {
    # config.json
    "gold_weight": "reference_weight",
    "pool": "batches_per_rollout",
    # metrics.jsonl
    "gold_loss": "reference_loss",
    "gold_term": "reference_term",
    "gold_agreement": "reference_prefix_agreement",
    "gold_divergence": "reference_prefix_divergence",
    "own_agreement": "student_prefix_agreement",
    "own_divergence": "student_prefix_divergence",
    "teacher_agreement": "teacher_prefix_agreement",
    "teacher_divergence": "teacher_prefix_divergence",
    # exposure.json, the writers of prefixes
    "gold": "reference",
    "own": "student",
}


def with_current_names(content: dict[str, Any]) -> dict[str, Any]:
    """Return an object of a file under the names of today: an `object_hook` of `json.loads`."""
    return {RENAMED.get(name, name): value for name, value in content.items()}
