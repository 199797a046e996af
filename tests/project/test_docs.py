"""What the documentation shows runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.storage import save_model
from textgen_env.tasks.copy import CopyConfig
from textgen_experiments.runs.factories import build_model, build_task

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
PPO_PAGE = (ROOT / "docs" / "algorithms" / "ppo.md").read_text()
PAGE = (ROOT / "docs" / "writing_an_agent.md").read_text()


def test_an_agent_of_ones_own_is_trained_by_the_command_line(tmp_path):
    (code,) = CODE.findall(PAGE)
    written = [
        line for line in code.splitlines() if line and not line.startswith(("from", "import"))
    ]
    assert len(written) <= 50
    program, run = tmp_path / "my_agents.py", tmp_path / "run"
    program.write_text(code)
    tokenizer = build_task(CopyConfig(num_words=8), None).tokenizer
    teacher = build_model(RecurrentConfig(tokenizer.vocab_size, width=16), 0)
    save_model(teacher, tmp_path / "teacher", tokenizer)
    command = [
        *("train", "--plugin", str(program), "--task", "copy"),
        *("--agent", "helped", "--agent.sure", "0.1"),
        *("--teacher", str(tmp_path / "teacher"), "--output", str(run)),
        *("--task.num-words", "8", "--task.max-length", "5", "--task.num-train", "40"),
        *("--task.num-validation", "4", "--task.num-test", "4", "--student.width", "16"),
        *("--learner.batch-size", "4", "--learner.updates", "4", "--learner.evaluate-every", "4"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "textgen_env", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < record["student_share"] <= 1 for record in records if "loss" in record)
    assert json.loads((run / "outcome.json").read_text())["teacher_tokens_queried"] > 0


def test_ppo_trains_on_a_reward_as_its_page_says(capsys):
    (code,) = CODE.findall(PPO_PAGE)
    short = code.replace("steps=8_000", "steps=1")  # of which a rollout is made
    assert short != code
    exec(compile(short, "ppo.md", "exec"), {})
    shown = re.fullmatch(r"1,024 steps: mean reward (0\.\d\d)\n", capsys.readouterr().out)
    assert 0.1 < float(shown[1]) < 0.4, "a new student"
