"""Parts of agents that are chosen by name."""

from dataclasses import fields

import pytest

from textgen_agents import AGENTS
from textgen_agents.dagger import DAgger
from textgen_agents.f_distill import RKL, FDistill
from textgen_agents.gkd import GKD
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.losses.kl_mixtures import EntropyAwareKL, MixedKL
from textgen_agents.losses.labels import Dense, Sampled, TopKWithTail
from textgen_agents.minillm import MiniLLM
from textgen_agents.rollouts.schedules import Constant, Linear
from textgen_agents.skd import SKD
from textgen_env.generation.sampling import Sampling
from textgen_experiments.command_line.parse import parse
from textgen_experiments.runs.agent_options import Variant, with_variant


def test_without_a_name_an_agent_is_as_it_was():
    for kind in AGENTS.values():
        assert with_variant(kind(), Variant()) == kind()


@pytest.mark.parametrize(
    ("agent", "variant", "expected"),
    [
        (ImitKD(), Variant(schedule="linear"), ImitKD(beta=Linear())),
        (
            DAgger(),
            Variant(label="dense", roll_in="sampled"),
            DAgger(label=Dense(), sampling=Sampling()),
        ),
        (FDistill(), Variant(kind="rkl"), FDistill(kind=RKL())),
        (ImitKDFull(), Variant(label="top_k"), ImitKDFull(label=TopKWithTail())),
        (ImitKDFull(), Variant(label="sampled"), ImitKDFull(label=Sampled())),
        (GKD(), Variant(divergence="mixed_kl"), GKD(divergence=MixedKL())),
        (SKD(), Variant(divergence="entropy_aware_kl"), SKD(divergence=EntropyAwareKL())),
        (GKD(divergence=MixedKL()), Variant(divergence="own"), GKD()),
    ],
)
def test_a_name_puts_its_part_in_place(agent, variant, expected):
    assert with_variant(agent, variant) == expected


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("mle", Variant(schedule="linear"), "schedule must be left out for mle, .* got linear"),
        ("minillm", Variant(schedule="linear"), "schedule must be left out for minillm"),
        ("seqkd", Variant(label="dense"), "label must be left out for seqkd"),
        ("gkd", Variant(kind="js"), "kind must be left out for gkd"),
        ("distillm", Variant(divergence="mixed_kl"), "divergence must be left out for distillm"),
        ("gkd", Variant(label="sampled"), "label must be Top1, TopKWithTail or Dense for any but"),
    ],
)
def test_an_agent_without_a_place_for_it_refuses_it(name, variant, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        with_variant(AGENTS[name](), variant)


def test_a_share_that_is_called_beta_is_no_schedule():
    assert {field.name: field.type for field in fields(MiniLLM)}["beta"] is float


def test_the_command_line_then_takes_the_parts_own_options(tmp_path):
    words = ["train", "--output", str(tmp_path), "--agent", "imitkd_full", "--schedule", "constant"]
    options = parse([*words, "--agent.beta.value", "0.25", "--roll-in", "sampled"])
    assert options.experiment.agent == ImitKDFull(beta=Constant(0.25), sampling=Sampling())


def test_the_command_line_takes_the_settings_of_a_mixture(tmp_path):
    words = ["train", "--output", str(tmp_path), "--agent", "gkd", "--divergence"]
    options = parse([*words, "entropy_aware_kl", "--agent.divergence.threshold", "0.5"])
    assert options.experiment.agent == GKD(divergence=EntropyAwareKL(threshold=0.5))


def test_the_command_line_says_who_has_no_such_part(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(["train", "--output", str(tmp_path), "--agent", "mle", "--schedule", "linear"])
    assert "textgen: --schedule must be left out for mle" in capsys.readouterr().err
