"""Tests of `textgen recovery`: success rates against their closed forms."""

import json
import math
from dataclasses import dataclass

import pytest
import torch

from textgen_agents.dagger import DAgger
from textgen_agents.imitkd import ImitKDFull
from textgen_agents.mle import MLE
from textgen_env.envs.recovery import (
    RecoveryConfig,
    known_success,
    recovery_policy,
    recovery_task,
)
from textgen_env.tasks.copy import CopyConfig
from textgen_env.types import SpecialTokens
from textgen_experiments.cli import main
from textgen_experiments.recipes.recovery import (
    RecoveryOptions,
    make_test_env,
    recovery_row,
    recovery_rows,
    success,
)

SLIPPERY = RecoveryConfig(CopyConfig(4, 1, 6, num_train=50, num_validation=1, num_test=1), slip=0.2)
EPISODES = 2000
FEW = ["--seeds", "2", "--episodes", "6", "--learner.updates", "5", "--learner.batch-size", "4"]
SMALL = ["--task.copy.max-length", "3", "--task.copy.num-train", "40"]
SIZES = [*SMALL, "--task.copy.num-validation", "1", "--task.copy.num-test", "1"]
TOLERANCE = 0.03  # of a mean over 2,500 episodes, whose standard deviation is at most 0.01


@dataclass(frozen=True)
class Scripted:
    """Policy as a model, whose cache holds the source and the tokens written."""

    policy: object
    vocab_size: int
    special = SpecialTokens()

    def start(self, source, max_steps):
        return source, torch.zeros(len(source), max_steps, dtype=torch.int64), 0

    def step(self, previous, cache):
        source, prefix, length = cache
        if length:
            prefix[:, length - 1] = previous
        actions = self.policy(source, prefix, torch.full_like(previous, length))
        logits = torch.zeros(len(source), self.vocab_size).scatter(1, actions[:, None], 1.0)
        return logits, (source, prefix, length + 1)


def never_undo(source, prefix, length):
    return source.gather(1, length.clamp(max=source.shape[1] - 1)[:, None]).squeeze(1)


@pytest.mark.parametrize("length", [1, 6])
def test_the_success_of_scripts_is_as_known(length):
    task, slips = recovery_task(SLIPPERY), SLIPPERY.slips
    env = make_test_env(task, slips, length, EPISODES)
    clone = known_success(length, length + 1, slips.error)
    best = known_success(length, task.max_target_length, slips.error)
    for policy, known in ((never_undo, clone), (recovery_policy, best)):
        share = success(Scripted(policy, task.tokenizer.vocab_size), env, seed=0)
        assert abs(share - known) <= 4.5 * math.sqrt(known * (1 - known) / EPISODES)


def test_the_seed_alone_decides_what_slips():
    task = recovery_task(SLIPPERY)
    env = make_test_env(task, SLIPPERY.slips, 6, 500)
    script = Scripted(never_undo, task.tokenizer.vocab_size)
    shares = [success(script, env, seed) for seed in (3, 4, 3)]
    assert shares[0] == shares[2] != shares[1]


def test_the_interval_is_students():
    row = recovery_row(MLE(), recovery_task(SLIPPERY), SLIPPERY.slips, 3, [0.1, 0.2, 0.3, 0.4, 0.5])
    assert row.success == pytest.approx(0.3)
    margin = 2.776445 * math.sqrt(0.025) / math.sqrt(5)  # quantile of t with 4 degrees of freedom
    assert (row.low, row.high) == pytest.approx((0.3 - margin, 0.3 + margin), rel=1e-3)
    assert row.never_undoing == pytest.approx(0.85**3)
    assert row.optimum == pytest.approx(known_success(3, 13, 0.15))


def test_the_command_writes_results_and_a_picture(tmp_path, capsys):
    threads = torch.get_num_threads()
    main(["recovery", "--output", str(tmp_path), *FEW, *SIZES])
    torch.set_num_threads(threads)
    results = json.loads((tmp_path / "results.json").read_text())
    where = [(row["agent"], row["length"]) for row in results["rows"]]
    assert where == [(agent, length) for agent in ("mle", "imitkd") for length in (1, 2, 3)]
    assert all(len(row["by_seed"]) == 2 for row in results["rows"])
    assert (tmp_path / "recovery.png").read_bytes().startswith(b"\x89PNG")
    assert "never undoing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [("seeds", "1", "seeds must be 2 to"), ("episodes", "0", "episodes must be at least 1")],
)
def test_a_mistake_is_one_line(option, value, rule, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["recovery", f"--{option}", value])
    assert stop.value.code == 2
    assert rule in capsys.readouterr().err


@pytest.mark.slow
def test_other_agents_that_learn_on_own_prefixes_recover_too():
    """Check agents without gkd, which needs a trained student."""
    options = RecoveryOptions(seeds=3)
    others = (ImitKDFull(), DAgger())
    longest = options.task.copy.max_length
    rows = {
        row.agent: row for row in recovery_rows(options, (MLE(), *others)) if row.length == longest
    }
    clone = rows.pop("mle")
    for row in rows.values():
        assert clone.high < row.low, (clone, row)


@pytest.mark.slow
def test_a_clone_fails_geometrically_and_imitkd_does_not():
    options = RecoveryOptions()
    rows = {(row.agent, row.length): row for row in recovery_rows(options)}
    longest = options.task.copy.max_length
    for length in range(1, longest + 1):
        clone = rows["mle", length]
        assert abs(clone.success - clone.never_undoing) <= TOLERANCE, clone
    clone, imitator = rows["mle", longest], rows["imitkd", longest]
    assert clone.high < imitator.low, (clone, imitator)
    assert imitator.success > 2 * clone.never_undoing, imitator
    assert imitator.success <= imitator.optimum + TOLERANCE
