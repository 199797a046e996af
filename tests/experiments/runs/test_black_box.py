"""Runs whose teacher is a proxy of a closed model that gives texts alone."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch

from textgen_agents.training.learner import LearnerConfig
from textgen_agents.word_kd import WordKD
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import load_model, save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import DataError, Limits
from textgen_env.tasks.text_files import TextFilesConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_experiments.cli import parse
from textgen_experiments.runs.experiment import Experiment
from textgen_experiments.runs.folder import RunError, read_config
from textgen_experiments.runs.outside import ChangedFileError
from textgen_experiments.runs.train import train

LETTERS = "abcdefgh"
SHORT = LearnerConfig(updates=50, batch_size=16, learning_rate=0.02, warmup=5, evaluate_every=50)


def write_pairs(path, pairs):
    path.write_text("".join(f"{source}\t{text}\n" for source, text in pairs))
    return path


@pytest.fixture
def experiment(tmp_path):
    draw = Random(0)
    sources = [" ".join(draw.choices(LETTERS, k=draw.randint(2, 4))) for _ in range(24)]
    pairs = [(source, source) for source in sources]
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_words(LETTERS)
    config = TransformerConfig(tokenizer.vocab_size, 16, num_heads=2, feed_forward=32)
    save_model(Transformer(config), tmp_path / "teacher", tokenizer)
    files = [write_pairs(tmp_path / f"{name}.tsv", pairs) for name in ("train", "held_out")]
    written = [(source, "h h") for source in sources for _ in range(3)]
    return Experiment(
        task=TextFilesConfig(files[0], files[1], files[1], limits=Limits(8, length_ratio=None)),
        teacher=tmp_path / "teacher",
        black_box_texts=write_pairs(tmp_path / "written.tsv", written),
        proxy_weight=0.01,
        student=RecurrentConfig(width=32),
        agent=WordKD(),
        learner=SHORT,
        precision="float32",
    )


def run(experiment, folder):
    train(experiment, folder, lambda update, record: None)
    return folder


def test_the_label_is_what_the_black_box_wrote_where_the_proxy_is_worth_little(
    experiment, tmp_path, capfd
):
    """On the prefix that the texts begin with: those of the data begin with other tokens."""
    folder = run(experiment, tmp_path / "run")
    assert "black box: texts of 24 of 24 training sources, 72 in all" in capfd.readouterr().err
    assert read_config(folder).experiment == experiment
    model = load_model(folder / "model").eval()
    special = model.special
    source = torch.tensor([[5, 6, special.end]])
    logits, _ = model.step(torch.tensor([special.start]), model.start(source, 4))
    tokenizer = Tokenizer.from_words(LETTERS)
    assert tokenizer.decode([[int(logits[0].argmax())]]) == ["h"]


def test_a_proxy_that_is_worth_everything_is_the_teacher_alone(experiment, tmp_path):
    short = replace(experiment, learner=replace(SHORT, updates=4, evaluate_every=2))
    proxied = run(replace(short, proxy_weight=1e9), tmp_path / "proxied") / "model"
    alone = run(replace(short, black_box_texts=None), tmp_path / "alone") / "model"
    found, wanted = (load_model(folder).state_dict() for folder in (proxied, alone))
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_together_is_one_line_before_training(experiment, tmp_path):
    with pytest.raises(ValueError, match=r"^teacher must be a model on this disk beside black_box"):
        replace(experiment, teacher=None)
    with pytest.raises(ValueError, match=r"^proxy_weight must be above 0"):
        replace(experiment, proxy_weight=0)
    with pytest.raises(DataError, match=r"nowhere\.tsv"):
        run(replace(experiment, black_box_texts=tmp_path / "nowhere.tsv"), tmp_path / "a")
    others = write_pairs(tmp_path / "others.tsv", [("z z z", "h")])
    with pytest.raises(RunError, match=r"^black_box_texts must hold a text of a training source"):
        run(replace(experiment, black_box_texts=others), tmp_path / "b")


def test_texts_that_have_changed_stop_a_run_that_is_resumed(experiment, tmp_path):
    short = replace(experiment, learner=replace(SHORT, updates=4, evaluate_every=2))
    folder = run(short, tmp_path / "run")
    (folder / "outcome.json").unlink()
    write_pairs(tmp_path / "written.tsv", [("a a", "b")])
    with pytest.raises(ChangedFileError, match=r"written\.tsv must be as it was"):
        run(short, folder)


def test_texts_with_named_fields_are_read_and_stripped(experiment, tmp_path, capfd):
    source = (tmp_path / "train.tsv").read_text().split("\t")[0]
    texts = tmp_path / "written.jsonl"
    texts.write_text(json.dumps({"source": f" {source} ", "reference": "a b c d e f g h a b"}))
    short = replace(experiment, learner=replace(SHORT, updates=2), black_box_texts=texts)
    run(short, tmp_path / "run")
    assert "black box: texts of 1 of 24 training sources, 1 in all" in capfd.readouterr().err


def test_the_command_line_takes_the_file(tmp_path):
    words = "train --task copy --teacher A --black-box-texts b.tsv --proxy-weight 2"
    experiment = parse([*words.split(), "--output", str(tmp_path)]).experiment
    assert experiment.black_box_texts.name == "b.tsv"
    assert experiment.proxy_weight == 2
