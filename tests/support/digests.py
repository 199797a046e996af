"""Digests of what every agent learns and of what a fixed model writes.

A change of structure must leave all of them alone. Rounding differs between processors and
releases of PyTorch, so the digests are kept for each pair of the two: `digests.json` beside this
file. `python tests/support/digests.py --write` adds those of this machine, and is for a change
that means to change results.
"""

import hashlib
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from textgen_agents import AGENTS
from textgen_env.generation.decoding import decode_all, sample
from textgen_env.generation.sampling import Sampling
from textgen_env.models.acceleration.precision import MeasuredPrecision
from textgen_env.models.storage import load_model, load_tokenizer
from textgen_env.tasks.task import encode_sources
from textgen_experiments.cli import main

FILE = Path(__file__).with_suffix(".json")
COPY = "--task copy --task.num-words 8 --task.min-length 2 --task.max-length 5 --task.num-train 96"
COPY += " --task.num-validation 8 --task.num-test 8"
LEARNER = "--learner.batch-size 8 --learner.warmup 4 --precision float32 --kept-labels-gb 0"
TWENTY = f"{LEARNER} --learner.updates 20 --learner.evaluate-every 10"
STUDENT = "--student recurrent --student.width 16"
TEACHER = "--agent mle --student transformer --student.width 16 --student.num-heads 2"
TEACHER += f" --student.feed-forward 32 {LEARNER} --learner.updates 120 --learner.evaluate-every 60"
OPTIONS = {
    "skd": "--agent.k 3",  # in a vocabulary of eleven tokens
    "genpi": "--agent.prompt-weight 0",  # for a teacher that reads no prompt
}
VARIANTS = {
    "dagger, both write": "--agent dagger --schedule constant --agent.beta.value 0.5",
    "dagger, top 3": "--agent dagger --label top_k --agent.label.k 3",
    "distillm, buffer": "--agent distillm --agent.student-fraction 0.9",
    "imitkd, sampled": "--agent imitkd --roll-in sampled --schedule linear",
    "gkd, jsd": "--agent gkd --agent.teacher-weight 0.5",
    "mle, smoothed": "--agent mle --agent.label-smoothing 0.1",
    "f_distill, tvd": "--agent f_distill --kind tvd",
    "mle, gold anchor": "--agent mle --learner.reference-weight 0.5",
}


def machine() -> str:
    """Return the names of what decides how results are rounded."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = [
        line.split(":")[1].strip() for line in lines if line.startswith(("vendor_id", "model\t"))
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join([f"torch {torch.__version__}", capability, *fields[:2]])


def digests(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the digest of each case, as it is computed in `folder`."""
    torch.set_num_threads(1)
    teacher = _train(folder / "teacher", f"{TEACHER} {COPY}")
    common = f"{STUDENT} {TWENTY} --teacher {teacher / 'model'}"
    for name in sorted(AGENTS):
        options = f"--agent {name} {_options_of(name, teacher)} {COPY} {common}"
        yield name, _weights(_train(folder / name, options))
        parts = _train(folder / f"{name}_in_parts", f"{options} --learner.accumulate 2")
        yield f"{name}, accumulate 2", _weights(parts)
    for name, options in VARIANTS.items():
        run = _train(
            folder / name.replace(", ", "_").replace(" ", "_"), f"{options} {COPY} {common}"
        )
        yield name, _weights(run)
    views = _two_views(folder)
    seer = _train(folder / "seer", f"{TEACHER} {_files(views['clear'])}")
    common = f"{STUDENT} {TWENTY} --teacher {seer / 'model'} {_files(views['both'])}"
    for name in sorted(AGENTS):
        options = f"--agent {name} {_options_of(name, seer)} {common}"
        yield f"{name}, two views", _weights(_train(folder / f"{name}_views", options))
    yield from _texts(teacher / "model")


def _options_of(name: str, teacher: Path) -> str:
    """Return the options of an agent; where it needs a mixture, it has the teacher twice."""
    further = f"--further-teachers {teacher / 'model'}" if AGENTS[name].needs_mixture else ""
    return f"{OPTIONS.get(name, '')} {further}"


def _train(folder: Path, options: str) -> Path:
    measured = MeasuredPrecision("float32", 1.0, None, 1.0)
    output = io.StringIO()
    with (
        patch("textgen_experiments.runs.resume.precision_here", lambda _: measured),
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        try:
            main(["train", "--output", str(folder), *options.split()])
        except SystemExit as stop:
            raise RuntimeError(f"{options}: {output.getvalue()}") from stop
    return folder


def _weights(run: Path) -> str:
    """Return the digest of the run's last weights, whatever their names."""
    held = load_file(run / "checkpoints" / "last.safetensors")
    weights = [value for name, value in sorted(held.items()) if name.startswith("student.")]
    parts = sorted(hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in weights)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _two_views(folder: Path) -> dict[str, Path]:
    """Write pairs whose source is scrambled for the student, and read as it is by the expert."""
    draw, rows = random.Random(0), []
    for _ in range(160):
        words = draw.choices("abcdefgh", k=draw.randint(2, 5))
        rows.append((" ".join(reversed(words)), " ".join(words)))
    both = [{"source": s, "reference": r, "expert_source": r} for s, r in rows]
    clear = [{"source": r, "reference": r} for _, r in rows]
    files = {}
    for name, records in (("both", both), ("clear", clear)):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    return files


def _files(file: Path) -> str:
    return f"--task text --task.train {file} --task.vocab-size 280"


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    sources = [" ".join(random.Random(i).choices("01234567", k=2 + i % 4)) for i in range(24)]
    lines = "".join(" ".join(f"w{word}" for word in line.split()) + "\n" for line in sources)
    for name, options in (("greedy", []), ("beam", ["--beam-size", "4"])):
        output = io.StringIO()
        with (
            patch("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode()))),
            redirect_stdout(output),
        ):
            main(["generate", str(folder), "--batch-size", "7", *options])
        yield f"texts, {name}", hashlib.sha256(output.getvalue().encode()).hexdigest()[:16]
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    sampled = decode_all(
        model,
        encode_sources(lines.split("\n")[:-1], tokenizer),
        8,
        decoder=partial(
            sample,
            sampling=Sampling(temperature=0.8, top_p=0.9),
            generator=torch.Generator().manual_seed(0),
        ),
    )
    yield "texts, sampled", hashlib.sha256(str(sampled.tolist()).encode()).hexdigest()[:16]


def run() -> None:
    """Compare with the digests kept for this machine, or write them."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    expected, found, changed = kept.get(machine(), {}), {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, digest in digests(Path(folder)):
            found[name] = digest
            if "--write" not in sys.argv and expected.get(name) != digest:
                changed.append(name)
                sys.stdout.write(f"{name}: {digest}, kept is {expected.get(name)}\n")
    if "--write" in sys.argv:
        FILE.write_text(json.dumps({**kept, machine(): found}, indent=1) + "\n")
    sys.stdout.write(f"{len(found)} digests, {len(changed)} changed\n")
    raise SystemExit(bool(changed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run()
