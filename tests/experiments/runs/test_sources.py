"""Runs that learn from sources without references, beside pairs or in place of them."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from textgen_agents.imitkd import ImitKDFull
from textgen_agents.kid import KID
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Constant
from textgen_agents.seqkd import SeqInter, SeqKD
from textgen_agents.training.learner import LearnerConfig
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import Limits
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import main
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import OUTCOME, RunError
from textgen_experiments.runs.outcome import read_outcome
from textgen_experiments.runs.train import PREPARED, train

LETTERS = "abcdefgh"
FEW_TOKENS = Limits(max_tokens=8, length_ratio=None)
SHORT = LearnerConfig(updates=6, batch_size=8, evaluate_every=3)


def lines(count, seed):
    """Return distinct texts of two to five letters."""
    draw = Random(seed)
    texts = (" ".join(draw.choices(LETTERS, k=draw.randint(2, 5))) for _ in range(5 * count))
    return list(dict.fromkeys(texts))[:count]


TEXTS = lines(40, seed=0)
TRAIN, HELD_OUT = TEXTS[:30], TEXTS[30:]


@pytest.fixture
def experiment(tmp_path):
    """Learns from pairs of texts and their reversal; the same texts lie there as sources."""
    for name, texts in (("train", TRAIN), ("held_out", HELD_OUT)):
        pairs = (f"{text}\t{text[::-1]}\n" for text in texts)
        (tmp_path / f"{name}.tsv").write_text("".join(pairs))
    (tmp_path / "sources.txt").write_text("\n".join(TRAIN))
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_words(list(LETTERS))
    teacher = Transformer(TransformerConfig(tokenizer.vocab_size, 16, num_heads=2, feed_forward=32))
    save_model(teacher, tmp_path / "teacher", tokenizer)
    held_out = tmp_path / "held_out.tsv"
    return Experiment(
        task=TextFilesConfig(tmp_path / "train.tsv", held_out, held_out, limits=FEW_TOKENS),
        teacher=tmp_path / "teacher",
        student=RecurrentConfig(width=16),
        agent=SeqKD(beam_size=2),
        learner=SHORT,
        precision="float32",
    )


@pytest.fixture
def run(tmp_path):
    """experiment, name -> the folder of the trained run."""

    def make(experiment, name="run"):
        train(experiment, tmp_path / name, lambda update, record: None)
        return tmp_path / name

    return make


def on_sources(experiment, tmp_path, *texts, train=None):
    """Return the experiment with a file of these sources, or of the pairs', in place of pairs."""
    if texts:
        (tmp_path / "sources.txt").write_text("\n".join(texts))
    task = replace(experiment.task, train=train, sources=(tmp_path / "sources.txt",))
    return replace(experiment, task=task)


def test_seqkd_learns_the_same_from_sources_as_from_their_pairs(experiment, run, tmp_path):
    pairs, sources = run(experiment), run(on_sources(experiment, tmp_path), "sources")
    for file in ("model/model.safetensors", PREPARED):
        one, other = (load_file(folder / file) for folder in (pairs, sources))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    prepared = load_file(sources / PREPARED)
    assert len(prepared["reference"]) == len(TRAIN)
    assert prepared["reference"].any(1).all(), "the teacher writes a text for every source"
    counts = [
        (each.train_pairs, each.train_sources) for each in map(read_outcome, (pairs, sources))
    ]
    assert counts == [(len(TRAIN), 0), (0, len(TRAIN))]


def test_pairs_and_sources_are_counted_apart(experiment, run, tmp_path, capsys):
    more = [*lines(80, seed=1), TRAIN[0], HELD_OUT[0]]
    given = on_sources(experiment, tmp_path, *more, train=experiment.task.train)
    given = replace(given, agent=ImitKDFull(beta=Constant(0.5)), train_pairs=12, train_sources=9)
    outcome = read_outcome(run(given))
    assert (outcome.train_pairs, outcome.train_sources) == (12, 9)
    known = {*TRAIN, *HELD_OUT}
    new = [text for text in more if text not in known]
    err = " ".join(capsys.readouterr().err.split())
    assert "text_files: 30 training, 10 validation, 10 test pairs" in err
    repeated = len({*more} & {*TRAIN})
    assert (
        f"training sources without references: {len(new)}, and {repeated} that training pairs have "
        "too" in err
    )
    assert f"left out: {len({*more} & {*HELD_OUT})} sources of validation or test" in err
    assert "learned from: 12 pairs and 9 sources without references" in err


def test_outcomes_of_before_sources_are_read(experiment, run):
    folder = run(experiment)
    outcome = json.loads((folder / OUTCOME).read_text())
    del outcome["train_sources"]
    (folder / OUTCOME).write_text(json.dumps(outcome))
    assert read_outcome(folder).train_sources == 0


@pytest.mark.parametrize(
    ("agent", "name"), [(MLE(), "mle"), (KID(), "kid"), (SeqInter(beam_size=2), "seqinter")]
)
def test_agents_that_need_references_are_refused_before_training(
    experiment, run, tmp_path, agent, name
):
    given = replace(on_sources(experiment, tmp_path), agent=agent)
    message = f"got {name} and 30 of text_files: leave those sources out, or choose one of seqkd,"
    with pytest.raises(RunError, match=message):
        run(given)
    assert not (tmp_path / "run").exists()
    run(replace(given, agent=SeqKD(beam_size=2)))  # in the folder of what was refused


def test_the_command_line_refuses_in_one_line(experiment, tmp_path, capsys):
    task = experiment.task
    files = ("train", task.train), ("validation", task.validation), ("test", task.test)
    options = [word for name, path in files for word in (f"--task.{name}", str(path))]
    (tmp_path / "sources.txt").write_text("a b c d e f\ng h g h\n")
    words = ["train", "--task", "text", *options, "--task.sources", str(tmp_path / "sources.txt")]
    words += ["--teacher", str(experiment.teacher), "--agent", "word_kd", "--precision", "float32"]
    with pytest.raises(SystemExit):
        main([*words, "--output", str(tmp_path / "run")])
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("textgen: --agent must learn without references where there are sources")
    assert "got word_kd and 2 of text_files" in line


def test_terms_about_references_learn_from_the_pairs(experiment, run, tmp_path):
    learner = replace(SHORT, reference_weight=0.5)
    given = replace(on_sources(experiment, tmp_path), learner=learner)
    with pytest.raises(
        RunError, match="reference_weight and ewc_weight must be 0 where text_files"
    ):
        run(given)
    both = on_sources(given, tmp_path, *lines(50, seed=2), train=experiment.task.train)
    folder = run(both, "both")
    assert read_outcome(folder).train_sources > 0
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert all(record["reference_term"] > 0 for record in records if "loss" in record)
