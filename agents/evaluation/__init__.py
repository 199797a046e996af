"""Evaluation: quality of generated texts and exposure bias."""

from textgen_agents.evaluation.exposure_report import ExposureBiasReport
from textgen_agents.evaluation.quality import Quality, bootstrap, paired_bootstrap, score, translate

__all__ = [
    "ExposureBiasReport",
    "Quality",
    "bootstrap",
    "paired_bootstrap",
    "score",
    "translate",
]
