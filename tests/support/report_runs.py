"""Trained and evaluated runs for the tests of the report, on texts that try to break it."""

from textgen_experiments.cli import main

HOSTILE = (
    "</script><script>window.broken = true</script>",
    "<!-- <script> & <b>bold</b>",
    "\"quoted\" 'twice' \u2028 &lt;i&gt;",
    "Grüße, 漢字 und \N{GRINNING FACE}",
)
"""Phrases in sources and references that the page must show unchanged."""
NUM_TEST = 40
SMALL = [
    *("--student.width", "16", "--student.num-encoder-layers", "1", "--learner.batch-size", "8"),
    *("--learner.updates", "12", "--learner.evaluate-every", "4", "--precision", "float32"),
]


def write_pairs(path, count, offset):
    """Write `count` pairs as TSV, a hostile phrase in each, and return the path."""
    lines = [
        f"{number} {HOSTILE[number % len(HOSTILE)]}\t{HOSTILE[number % len(HOSTILE)]} {number}\n"
        for number in range(offset, offset + count)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def task_options(folder):
    """Return options of `train` for a task of such pairs."""
    sizes = {"train": 80, "validation": 8, "test": NUM_TEST}
    files = {
        split: write_pairs(folder / f"{split}.tsv", count, 100 * index)
        for index, (split, count) in enumerate(sizes.items())
    }
    named = (item for split, path in files.items() for item in (f"--task.{split}", path))
    return ["--task", "text", *named]


def trained_runs(folder):
    """Train and evaluate an mle and an imitkd_full student of one teacher; return their folders."""
    task = task_options(folder)
    main(["train", *task, *SMALL, "--agent", "mle", "--output", str(folder / "teacher")])
    teacher = ["--teacher", str(folder / "teacher" / "model")]
    runs = [folder / "mle", folder / "imitkd_full"]
    for run in runs:
        main(["train", *task, *SMALL, *teacher, "--agent", run.name, "--output", str(run)])
    main(["evaluate", *map(str, runs)])
    return runs
