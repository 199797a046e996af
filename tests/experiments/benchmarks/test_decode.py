"""Tests of `benchmark-decode`: rows of every setting, and figures computed by hand."""

import json
from pathlib import Path

import pytest
import torch

from textgen_env.generation.decoding import greedy
from textgen_env.models.acceleration.prepacked import PrepackedLinear
from textgen_env.models.recurrent import Recurrent, RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tokenizers.subword import Tokenizer
from textgen_env.types import SpecialTokens
from textgen_experiments.benchmarks import candidates as module
from textgen_experiments.benchmarks import decode as command
from textgen_experiments.benchmarks.candidates import BenchmarkCase, TimedGeneration, peak_memory
from textgen_experiments.benchmarks.decode import decode_row, length_sorted_batches
from textgen_experiments.cli import main
from textgen_experiments.models.formats import load_generator
from textgen_experiments.runs.folder import DTYPES, read_config, write_config

TASK = ["--task", "copy", "--task.num-words", "8", "--task.max-length", "4"]
SIZES = ["--task.num-train", "40", "--task.num-validation", "8", "--task.num-test", "8"]
LEARNER = ["--learner.batch-size", "4", "--learner.updates", "2", "--learner.evaluate-every", "2"]


def case(engine="eager", precision="float32", folder=Path("model")):
    return BenchmarkCase("student", folder, 7, engine, precision, folder)


def train(folder, *options):
    main(["train", "--agent", "mle", *TASK, *SIZES, *LEARNER, *options, "--output", str(folder)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train a Transformer and a recurrent student of the same Transformer teacher."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_words([f"w{index}" for index in range(8)])
    config = TransformerConfig(tokenizer.vocab_size, 16, num_heads=2, feed_forward=16)
    save_model(Transformer(config), folder / "teacher", tokenizer)
    both = ["--teacher", str(folder / "teacher"), "--precision", "float32"]
    small = ["--student.width", "8"]
    train(folder / "t", *both, "--student", "transformer", *small, "--student.num-heads", "2")
    train(folder / "r", *both, *small)
    return folder / "t", folder / "r"


def skip_memory(monkeypatch):
    """Replace the peak memory, which needs a slow new process for each case."""
    monkeypatch.setattr(command, "peak_memory", lambda case, batches, _: [5.0] * len(batches))


def test_every_setting_has_a_row_and_every_run_a_file(runs, capsys, monkeypatch):
    pytest.importorskip("ctranslate2")
    skip_memory(monkeypatch)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, **how: compiled.append(how) or step)
    engines = ["--engines", "eager", "compiled", "ctranslate2", "--batch-sizes", "1", "4", "64"]
    main(["benchmark-decode", *map(str, runs), *engines, "--rounds", "2"])
    shown = capsys.readouterr().out
    for name in ("teacher", "compiled", "bfloat16", "int8", "p95 ms", "MiB", "same", "speed-up"):
        assert name in shown
    assert [how["dynamic"] and how["fullgraph"] for how in compiled] == [True] * 6
    transformer, recurrent = (json.loads((run / "decode.json").read_text()) for run in runs)
    assert transformer["rounds"] == 2
    assert transformer["machine"]["threads"] == torch.get_num_threads()
    settings = {(row["model"], row["engine"], row["precision"]) for row in transformer["rows"]}
    assert len(settings) == 14
    assert len(transformer["rows"]) == 3 * 14
    assert len(recurrent["rows"]) == 3 * 12  # CTranslate2 has no recurrent models
    for row in transformer["rows"] + recurrent["rows"]:
        assert row["batch_size"] in (1, 4, 8)  # there are 8 sentences
        assert row["latency_p95"] >= row["latency_p50"] > 0
        assert (row["compile_seconds"] is None) == (row["engine"] != "compiled")
        assert row["tokens_per_second"] >= row["sentences_per_second"] > 0
        assert row["speedup_vs_teacher"] == 1 or row["model"] != "teacher"
        assert row["speedup_vs_teacher"] > 0
        if row["precision"] == "float32":
            assert row["same"] == 1


@pytest.mark.slow
def test_graphs_of_all_kinds_are_measured_in_onnx_runtime(runs, monkeypatch):
    pytest.importorskip("onnxruntime")
    skip_memory(monkeypatch)
    options = ["--engines", "eager", "onnx", "--precisions", "float32", "--batch-sizes", "4"]
    main(["benchmark-decode", *map(str, runs), *options, "--rounds", "1"])
    for run in runs:
        rows = json.loads((run / "decode.json").read_text())["rows"]
        assert [row["engine"] for row in rows] == ["eager", "onnx"] * 2
        assert [row["same"] for row in rows] == [1.0] * 4


def test_without_a_teacher_the_first_run_is_the_base(tmp_path, capsys, monkeypatch):
    skip_memory(monkeypatch)
    train(tmp_path / "a", "--student.width", "8")
    options = ["--engines", "eager", "--precisions", "float32", "--batch-sizes", "4"]
    main(["benchmark-decode", str(tmp_path / "a"), *options, "--rounds", "1"])
    (row,) = json.loads((tmp_path / "a" / "decode.json").read_text())["rows"]
    assert (row["model"], row["speedup_vs_teacher"]) == ("a", 1)


def timed_generation(batch_sizes, seconds):
    """Return a generation of 3 tokens a sentence that took the given seconds."""
    written = [torch.tensor([[4, 5, 2, 0]]).repeat(size, 1) for size in batch_sizes]
    return TimedGeneration(lambda source, _: source, written, 4, 0, seconds, written)


def test_figures_of_a_row_by_hand():
    seconds = [[9.0, 9.0], [1.0, 3.0], [2.0, 2.0], [3.0, 5.0]]
    eager_tokens = torch.tensor([[4, 5, 2, 0], [4, 6, 2, 0]])
    row = decode_row(
        case("compiled"),
        timed_generation([1, 1], seconds),
        [2.0, 8.0, 3.0],
        base=[1.0, 2.0, 6.0],
        peak=None,
        eager_tokens=eager_tokens,
    )
    assert row.speedup_vs_teacher == 2  # median of the ratios 2, 4 and 0.5, not 3 / 2
    assert row.tokens_per_second == 3
    assert row.sentences_per_second == 1
    assert row.latency_p50 == 2.5  # median of 1, 2, 2, 3, 3, 5
    assert row.latency_p95 == pytest.approx(4.5)
    assert row.compile_seconds == 14  # first round 18, then 4, 4, 8
    assert row.same == 0.5
    assert (row.batch_size, row.sentences, row.peak_mib) == (1, 2, None)


def test_a_sentence_waits_for_its_batch_and_has_no_ratio_without_a_base():
    row = decode_row(
        case(),
        timed_generation([3, 1], [[9.0, 9.0], [4.0, 1.0], [6.0, 2.0]]),
        [6.0],
        base=None,
        peak=3.0,
        eager_tokens=torch.zeros(4, 4),
    )
    assert row.latency_p50 == 4  # median of 1, 2, 4, 4, 4, 6, 6, 6
    assert row.latency_p95 == 6
    assert (row.batch_size, row.sentences, row.speedup_vs_teacher) == (3, 4, None)
    assert (row.compile_seconds, row.peak_mib, row.same) == (None, 3.0, 0)


def test_a_timed_generation_keeps_the_seconds_of_each_batch(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 13.0, 20.0, 21.0, 30.0, 35.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    timed = TimedGeneration(
        lambda source, steps: source[:, :steps], [torch.tensor([[3, 2, 0]])] * 2, 2, 0
    )
    assert [timed(), timed()] == [4, 4]
    assert timed.seconds == [[2, 3], [1, 5]]
    assert torch.cat(timed.written).tolist() == [[3, 2]] * 2


def test_batches_are_sorted_by_length_and_limited():
    source = torch.tensor([[5, 2, 0], [5, 5, 2], [2, 0, 0]]).repeat(30, 1)
    batches = length_sorted_batches(source, 2, SpecialTokens())
    assert len(batches) == 32
    length = (source != 0).sum(1)[torch.cat(batches)].tolist()
    assert length == sorted(length, reverse=True)
    assert sorted(torch.cat(batches).tolist()) == list(range(64))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_loaded_generator_has_prepacked_weights_and_writes_as_the_model(tmp_path, precision):
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(60, 32)).to(DTYPES[precision]).eval()
    save_model(model, tmp_path / "m")
    write = load_generator(tmp_path / "m", precision=precision)
    assert isinstance(write.args[0].join_output, PrepackedLinear)
    source = torch.tensor([[5, 9, 2], [7, 2, 0]]).repeat(4, 1)
    assert torch.equal(write(source, 9), greedy(model, source, 9))


def test_memory_is_at_least_that_of_the_weights_and_grows(tmp_path):
    model = Recurrent(RecurrentConfig(2000, 512, num_decoder_layers=1))
    save_model(model, tmp_path / "m")
    weights = sum(weight.numel() * 4 for weight in model.parameters()) / 2**20
    batches = [torch.full((rows, 20), 2) for rows in (1, 512)]
    small, large = peak_memory(case(folder=tmp_path / "m"), batches, 2)
    assert weights < small < 4 * weights
    assert large > small


def test_memory_of_a_compiler_is_not_counted():
    assert peak_memory(case("compiled"), [torch.zeros(1, 1)] * 2, 3) == [None, None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--precisions", "float16"], "float16"),
        (["--engines", "compiled", "--precisions", "int8"], "precisions must have one of compiled"),
        (["--engines", "vllm"], "vllm"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--batch-sizes", "4", "0"], "--batch-sizes must be at least 1"),
        (["--sentences", "0"], "sentences must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(options, expected, runs, capsys):
    assert expected in complaint(capsys, str(runs[0]), *options)


def complaint(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["benchmark-decode", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_no_run_is_one_line(capsys):
    assert "runs must be at least one folder" in complaint(capsys)


def test_an_unfinished_run_is_one_line(runs, tmp_path, capsys):
    write_config(tmp_path, read_config(runs[0]), {})
    assert "must be finished" in complaint(capsys, str(tmp_path))
    assert not (tmp_path / "decode.json").exists()


def test_recurrent_models_alone_have_nothing_for_ctranslate2(tmp_path, capsys):
    train(tmp_path / "run", "--student.width", "8")
    line = complaint(capsys, str(tmp_path / "run"), "--engines", "ctranslate2")
    assert "must be a Transformer for ctranslate2" in line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own
def test_a_compiled_step_writes_the_same(tmp_path):
    config = TransformerConfig(30, 16, num_heads=2, feed_forward=16, num_decoder_layers=1)
    torch.manual_seed(0)
    save_model(Transformer(config), tmp_path / "m")
    source = torch.tensor([[5, 7, 2], [4, 2, 0]])
    eager, compiled = (
        case(engine, folder=tmp_path / "m").load()(source, 6) for engine in ("eager", "compiled")
    )
    assert torch.equal(eager, compiled)


def test_runs_are_drafts_of_their_teacher(runs, capsys, monkeypatch):
    skip_memory(monkeypatch)
    engines = ["--engines", "eager", "speculative", "--precisions", "float32"]
    sizes = ["--batch-sizes", "1", "8", "--rounds", "1", "--draft-tokens", "2"]
    main(["benchmark-decode", *map(str, runs), *engines, *sizes])
    shown = capsys.readouterr().out
    assert "tokens/pass" in shown
    for run in runs:
        rows = json.loads((run / "decode.json").read_text())["rows"]
        drafts = [row for row in rows if row["engine"] == "speculative"]
        assert [row["batch_size"] for row in drafts] == [1, 8]
        for row in drafts:
            assert row["model"] == run.name
            assert row["same"] == 1, "the teacher's texts"
            assert 1 <= row["tokens_per_pass"] <= 3
            assert 0 <= row["acceptance"] <= 1
            assert row["speedup_vs_teacher"] > 0
        assert all(row["tokens_per_pass"] is None for row in rows if row not in drafts)


def test_a_run_alone_is_no_draft(tmp_path, capsys):
    train(tmp_path / "run", "--student.width", "8")
    line = complaint(capsys, str(tmp_path / "run"), "--engines", "speculative")
    assert "a run beside its teacher or another run for speculative, got run" in line
