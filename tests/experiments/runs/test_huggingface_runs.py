"""Runs with pretrained teachers and students, through the real entry points."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.support.pretrained import FAMILIES, WITH_EXPERTS, WORDS, save_family
from tests.support.updates import assert_runs_end_alike, stop_at_second_checkpoint
from textgen_env.models.huggingface.model import HuggingFaceModel
from textgen_env.models.recurrent import Recurrent
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_experiments.cli import main
from textgen_experiments.runs.outcome import read_outcome

SHORT = [
    *("--learner.batch-size", "4", "--learner.updates", "4", "--learner.evaluate-every", "2"),
    *("--learner.warmup", "1", "--learner.learning-rate", "1e-2", "--precision", "float32"),
]
SMALL = ["--student.width", "16"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders: a teacher, a smaller student of its family, one of another, and some pairs."""
    root = tmp_path_factory.mktemp("runs")
    save_family(FAMILIES["llama"], root / "teacher", seed=0)
    save_family(FAMILIES["llama"], root / "student", seed=1, width=16, layers=1)
    save_family(FAMILIES["marian"], root / "marian", seed=2)
    for name in ("mixtral", "qwen3_moe"):
        save_family(WITH_EXPERTS[name], root / name, seed=3)
    pairs = [(WORDS[place + 1 : place + 4], WORDS[place : place + 2]) for place in range(20)]
    lines = ["\t".join(map(" ".join, pair)) for pair in pairs]
    for split, part in {
        "train": lines[:14],
        "validation": lines[14:17],
        "test": lines[17:],
    }.items():
        (root / f"{split}.tsv").write_text("\n".join(part) + "\n")
    return root


@pytest.fixture
def run(root):
    """Options -> what a run with them leaves."""

    def run(name, *options, teacher="teacher"):
        folder = root / name
        task = [f"--task.{split}" for split in ("train", "validation", "test")]
        files = [str(root / f"{split}.tsv") for split in ("train", "validation", "test")]
        named = [word for pair in zip(task, files, strict=True) for word in pair]
        main(
            [
                *("train", "--task", "text", *named, "--task.limits.max-tokens", "8"),
                *("--teacher", str(root / teacher), "--output", str(folder), *SHORT, *options),
            ]
        )
        return folder

    return run


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.parametrize("agent", ["imitkd_full", "seqkd", "dagger"])
def test_a_model_of_ones_own_learns_from_a_pretrained_one(run, root, agent):
    folder = run(f"own-{agent}", "--agent", agent, *SMALL)
    assert len(losses(folder)) == 4
    model, teacher = load_model(folder / "model"), load_model(root / "teacher")
    assert isinstance(model, Recurrent)
    assert (model.special, model.vocab_size) == (teacher.special, teacher.vocab_size)
    assert load_tokenizer(folder / "model").pieces == load_tokenizer(root / "teacher").pieces
    assert read_outcome(folder).teacher_tokens_queried > 0
    main(["evaluate", str(folder)])
    assert json.loads((folder / "results.json").read_text())["rows"][0]["model"] == "teacher"


@pytest.mark.parametrize("teacher", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("agent", ["every_expert_ka", "every_expert_sar"])
def test_a_stopped_run_learns_the_same_from_a_teacher_with_experts_in_its_layers(
    run, root, monkeypatch, agent, teacher
):
    options = ["--agent", agent, *SMALL]
    whole = run(f"{agent}-{teacher}", *options, teacher=teacher)
    assert len(losses(whole)) == 4
    stopped = f"{agent}-{teacher}-stopped"
    stop_at_second_checkpoint(monkeypatch, lambda: run(stopped, *options, teacher=teacher))
    last = assert_runs_end_alike(whole, run(stopped, *options, teacher=teacher))
    routers = [name for name in last if name.startswith("companions.routers.")]
    in_layers = {"mixtral": 2, "qwen3_moe": 1}[teacher]
    assert len(routers) == (in_layers if agent == "every_expert_sar" else 0)


def test_a_teacher_whose_layers_have_no_experts_is_one_line(run, capsys):
    with pytest.raises(SystemExit):
        run("dense", "--agent", "every_expert_sar", *SMALL)
    assert "mixture of at least 2 models, got 1: give more teachers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("few", "--agent", "every_expert_ka", "--agent.left-out", "4", *SMALL, teacher="mixtral")
    message = "--agent.left-out must be below 4, the number of experts, got 4"
    assert message in capsys.readouterr().err


def test_a_pretrained_student_learns_and_is_one_of_transformers_again(run, root):
    folder = run("pretrained", "--agent", "imitkd_full", "--student-init", str(root / "student"))
    model, before = load_model(folder / "model"), load_model(root / "student")
    assert isinstance(model, HuggingFaceModel)
    moved = [
        not torch.equal(new, old)
        for new, old in zip(model.parameters(), before.parameters(), strict=True)
    ]
    assert all(moved)
    _, found = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(found.values())


@pytest.mark.parametrize(
    ("teacher", "sides"), [("teacher", ["decoder"]), ("marian", ["encoder", "decoder"])]
)
def test_a_student_of_its_teachers_last_layers_is_one_of_transformers_again(
    run, root, teacher, sides
):
    layers = [word for side in sides for word in (f"--student-from-teacher.{side}", "1")]
    folder = run(f"layers-{teacher}", "--agent", "imitkd_full", *layers, teacher=teacher)
    assert len(losses(folder)) == 4
    model = load_model(folder / "model").model
    assert model.get_decoder().config.num_hidden_layers == 1
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    _, found = auto.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(found.values())


def test_adapters_of_a_pretrained_student_learn_alone(run, root):
    options = ["--agent", "imitkd_full", "--student-init", str(root / "student")]
    folder = run("adapters", *options, "--lora-rank", "2")
    kept = load_file(folder / "checkpoints" / "last.safetensors")
    weights = [name for name in kept if name.startswith("student.")]
    assert weights
    assert all(".lora_" in name for name in weights)
    trained, before = load_model(folder / "model"), load_model(root / "student")
    changed = {
        name
        for name, weight in trained.state_dict().items()
        if not torch.equal(weight, before.state_dict()[name])
    }
    assert changed
    assert not any("embed" in name or "norm" in name for name in changed)


def test_a_run_with_adapters_goes_on_as_if_never_stopped(run, root, monkeypatch):
    options = ["--agent", "imitkd_full", "--student-init", str(root / "student")]
    options += ["--lora-rank", "2", "--agent.batches_per_rollout", "1", "--learner.ema", "0.5"]
    whole = run("whole", *options)

    stop_at_second_checkpoint(monkeypatch, lambda: run("stopped", *options))
    last = assert_runs_end_alike(whole, run("stopped", *options))
    averaged = [name for name in last if name.startswith("average.")]
    assert averaged
    assert all(".lora_" in name for name in averaged), "only what is trained"


@pytest.mark.parametrize("agent", ["seqkd", "seqinter", "imitkd"])
def test_a_student_with_another_tokenizer_learns_from_texts(run, root, agent):
    other = ["--student-tokenizer", str(root / "marian")]
    # The student of imitkd writes from the second update on, and the teacher is asked.
    own = {"imitkd": ["--agent.beta.base", "1e9", "--agent.batches-per-rollout", "1"]}
    folder = run(f"other-{agent}", "--agent", agent, *SMALL, *other, *own.get(agent, []))
    assert load_tokenizer(folder / "model").pieces == load_tokenizer(root / "marian").pieces
    assert len(losses(folder)) == 4
    prepared = load_file(folder / "prepared.safetensors")
    assert set(prepared) == {"source", "reference", "expert_source"}
    assert read_outcome(folder).teacher_tokens_queried > 0


def test_it_is_judged_beside_its_teacher_each_in_its_own_tokens(run, root, capsys):
    other = run("judged", "--agent", "imitkd", *SMALL, "--student-tokenizer", str(root / "marian"))
    same = run("same", "--agent", "imitkd", *SMALL)
    main(["evaluate", str(other)])
    main(["evaluate", str(same)])
    (teacher, row), (alone, _) = (
        json.loads((folder / "results.json").read_text())["rows"] for folder in (other, same)
    )
    assert (teacher["model"], row["model"]) == ("teacher", "judged")
    assert {name: teacher[name] for name in ("bleu", "chrf")} == {
        name: alone[name] for name in ("bleu", "chrf")
    }
    by_sentence = row["sentences_per_second"] / teacher["sentences_per_second"]
    assert row["speedup_vs_teacher"] == pytest.approx(by_sentence, rel=0.5)
    main(["report", str(other), "-o", str(root / "report.html")])
    assert (root / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["benchmark-decode", str(other)])
    assert "must have the tokenizer of" in capsys.readouterr().err


def test_a_pretrained_student_of_another_family_learns_from_texts(run, root):
    folder = run("family", "--agent", "seqkd", "--student-init", str(root / "marian"))
    assert load_model(folder / "model").config.model_type == "marian"


def complaint(capsys, run, *options):
    with pytest.raises(SystemExit):
        run("refused", *options)
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("agent", ["imitkd_full", "gkd", "word_kd", "dagger"])
@pytest.mark.parametrize("option", ["--student-tokenizer", "--student-init"])
def test_others_say_why_they_do_not_before_training(run, root, agent, option, capsys):
    line = complaint(capsys, run, "--agent", agent, option, str(root / "marian"))
    assert f"{option} must have the teacher's tokenizer" in line
    assert f"{agent} asks for distributions" in line
    assert "imitkd, seqkd and seqinter learn from what it writes" in line
    assert not (root / "refused").exists()


def test_two_tokenizers_for_a_student_are_refused(run, root, capsys):
    given = ["--student-init", str(root / "student"), "--student-tokenizer", str(root / "marian")]
    line = complaint(capsys, run, "--agent", "seqkd", *given)
    assert "--student-tokenizer must be that of --student-init" in line


def test_adapters_without_a_model_are_refused(run, capsys):
    line = complaint(capsys, run, "--lora-rank", "2")
    assert "--student-init must be given for adapters" in line
