import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import ArrayConversion

from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.testing import ContractError, check_vector_env
from textgen_env.testing.checker import CHECKS
from textgen_env.testing.recorder import record_env
from textgen_env.types import SpecialTokens

SAME_STEP, NEXT_STEP, DISABLED = (
    AutoresetMode.SAME_STEP,
    AutoresetMode.NEXT_STEP,
    AutoresetMode.DISABLED,
)
TASK = copy_task(
    CopyConfig(num_words=6, min_length=1, max_length=4, num_train=40, num_validation=2, num_test=2)
)
VOCAB_SIZE, MAX_STEPS = TASK.tokenizer.vocab_size, TASK.max_target_length


class Faulty(VectorWrapper):
    """Wrapper with one fault, in a method that a subclass overrides."""

    def reset(self, *, seed=None, options=None):
        return self.after_reset(*self.env.reset(seed=seed, options=options))

    def step(self, actions):
        """Give the wrapped environment PAD after an end, whatever flags a fault reports."""
        over = self.env.unwrapped.state.done
        taken = torch.as_tensor(actions).masked_fill(over, TASK.tokenizer.special.pad)
        return self.after_step(*self.env.step(taken))

    def after_reset(self, shown, info):
        return shown, info

    def after_step(self, shown, rewards, terminated, truncated, info):
        return shown, rewards, terminated, truncated, info


class OutsideTheVocabulary(Faulty):
    def after_step(self, shown, *rest):
        prefix = shown["prefix"].clone()
        prefix[1, 0] = VOCAB_SIZE
        return shown | {"prefix": prefix}, *rest


class OutsideTheActions(Faulty):
    def __init__(self, env):
        super().__init__(env)
        env.action_space = type(env.action_space)(np.full(env.num_envs, 3))


class NarrowLengths(Faulty):
    def after_step(self, shown, *rest):
        return shown | {"length": shown["length"].int()}, *rest


class GarbageBehindTheEnd(Faulty):
    def after_step(self, shown, *rest):
        prefix = shown["prefix"].clone()
        prefix[1, -1] = 3
        return shown | {"prefix": prefix}, *rest


class BeginsWithAToken(Faulty):
    def after_reset(self, shown, info):
        return shown | {"length": shown["length"] + 1}, info


class FlagsAsNumbers(Faulty):
    def after_step(self, shown, rewards, terminated, *rest):
        return shown, rewards, terminated.long(), *rest


class BothFlags(Faulty):
    def after_step(self, shown, rewards, terminated, truncated, info):
        return shown, rewards, terminated | truncated, truncated, info


class DoubleRewards(Faulty):
    def after_step(self, shown, rewards, *rest):
        return shown, rewards.double(), *rest


class RewardsWithoutAnEnd(Faulty):
    def after_step(self, shown, rewards, *rest):
        return shown, rewards / rewards, *rest


class RewardsAfterTheEnd(Faulty):
    def after_step(self, shown, rewards, *rest):
        return shown, rewards + 0.5, *rest


class NoFinalMask(Faulty):
    def after_step(self, *results):
        info = results[-1]
        return *results[:-1], info | {"_final_obs": torch.zeros_like(info["_final_obs"])}


class ShowsTheEnd(Faulty):
    def after_step(self, shown, *rest):
        info = rest[-1]
        ended = {name: info["final_obs"][name] for name in ("prefix", "length")}
        return shown | ended, *rest


class NoFinalObservation(Faulty):
    def after_step(self, *results):
        info = results[-1]
        return *results[:-1], {name: info[name] for name in info if name != "final_obs"}


class NextEpisodeInFinalObs(Faulty):
    def after_step(self, shown, *rest):
        *flags, info = rest
        return shown, *flags, info | {"final_obs": shown}


class FinalInfoOfTheNextEpisode(Faulty):
    def after_step(self, *results):
        info = results[-1]
        final = info["final_info"] | {"index": info["index"]}
        return *results[:-1], info | {"final_info": final}


class KeepsItsFirstIndex(Faulty):
    def after_reset(self, shown, info):
        self.index = info["index"]
        return shown, info

    def after_step(self, *results):
        info = results[-1] | {"index": self.index}
        if "final_info" in info:
            info["final_info"] = info["final_info"] | {"index": self.index}
        return *results[:-1], info


class IndexBeyondAllExamples(Faulty):
    def after_step(self, *results):
        return *results[:-1], results[-1] | {"index": results[-1]["index"] + 1000}


class IndexAtResetAlone(Faulty):
    def after_step(self, *results):
        return *results[:-1], {k: v for k, v in results[-1].items() if k != "index"}


class BeginsByItself(Faulty):
    begun = False

    def reset(self, **given):
        self.begun = True
        return super().reset(**given)

    def step(self, actions):
        if not self.begun:
            self.reset()
        return super().step(actions)


class RefusesArrays(Faulty):
    def step(self, actions):
        return self.after_step(*self.env.step(actions.masked_fill(self.env.state.done, 0)))


class ArraysMoveTokensOn(Faulty):
    def step(self, actions):
        return super().step(actions if isinstance(actions, torch.Tensor) else actions.clip(max=3))


class HoldsALambda(Faulty):
    def __init__(self, env):
        super().__init__(env)
        self.held = lambda: None


class CopiesForget(Faulty):
    def __getstate__(self):
        return {}

    def __setstate__(self, state):
        super().__init__(make(SAME_STEP))


class CopiesBeginAnew(CopiesForget):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.reset(seed=0)


class CannotBeClosed(Faulty):
    def close(self):
        raise OSError("still in use")


class ClosesOnce(Faulty):
    def close(self):
        super().close()
        del self.env


class NeverTerminatesSlot1(Faulty):
    def after_step(self, shown, rewards, terminated, *rest):
        return shown, rewards, terminated & torch.tensor([True, False, True]), *rest


class NeverTruncatesSlot1(Faulty):
    def after_step(self, shown, rewards, terminated, truncated, info):
        return shown, rewards, terminated, truncated & torch.tensor([True, False, True]), info


class WritesAnotherToken(Faulty):
    def step(self, actions):
        other = torch.where(actions == 3, 4, actions)
        *results, info = self.env.step(other)
        return *results, {name: value for name, value in info.items() if "written" not in name}


class ForgetsTheSource(Faulty):
    def after_step(self, shown, *rest):
        return shown | {name: shown[name].roll(1, 0) for name in ("source", "source_length")}, *rest


class OneBuffer(Faulty):
    def __init__(self, env):
        super().__init__(env)
        self.buffer = None

    def after_reset(self, shown, info):
        self.buffer = {name: tensor.clone() for name, tensor in shown.items()}
        return self.buffer, info

    def after_step(self, shown, *rest):
        for name, tensor in shown.items():
            self.buffer[name].copy_(tensor)
        return self.buffer, *rest


class IgnoresTheSeed(Faulty):
    def reset(self, *, seed=None, options=None):
        del seed
        return self.env.reset(options=options)


class SeedsGlobally(Faulty):
    seed = staticmethod(torch.manual_seed)

    def reset(self, *, seed=None, options=None):
        self.seed(12 if seed is None else seed)
        return super().reset(seed=seed, options=options)


class SeedsNumpy(SeedsGlobally):
    seed = staticmethod(np.random.seed)


class SeedsRandom(SeedsGlobally):
    seed = staticmethod(random.seed)


class DrawsGlobally(Faulty):
    def after_step(self, *results):
        torch.rand(1)
        return results


class IgnoresOption(Faulty):
    option = "indices"

    def reset(self, *, seed=None, options=None):
        options = {name: value for name, value in (options or {}).items() if name != self.option}
        return super().reset(seed=seed, options=options)


class SaysNoIndex(Faulty):
    def after_reset(self, shown, info):
        del info
        return shown, {}


class HonorsIndicesInWordOnly(IgnoresOption):
    def reset(self, *, seed=None, options=None):
        shown, info = super().reset(seed=seed, options=options)
        if options:
            info["index"] = torch.tensor(options["indices"])
        return shown, info


class IgnoresTheMask(IgnoresOption):
    option = "reset_mask"


class ResetsNothingByMask(Faulty):
    def reset(self, *, seed=None, options=None):
        if options and "reset_mask" in options:
            return self.shown, {}
        return super().reset(seed=seed, options=options)

    def after_step(self, shown, *rest):
        self.shown = shown
        return shown, *rest


class RewardsBySlot(Faulty):
    def after_step(self, shown, rewards, *rest):
        return shown, rewards + torch.arange(3) / 8, *rest


class PretendsSameStep(Faulty):
    """Wrapper that names another mode than it runs in."""

    mode = SAME_STEP

    def __init__(self, env):
        super().__init__(env)
        self.autoreset_mode = self.mode
        self.metadata = env.metadata | {"autoreset_mode": self.mode}

    @property
    def unwrapped(self):
        return self


class PretendsNextStep(PretendsSameStep):
    mode = NEXT_STEP


class PretendsDisabled(PretendsSameStep):
    mode = DISABLED


def wrong_attribute(env):
    env.autoreset_mode = NEXT_STEP
    return env


def wrong_metadata(env):
    env.metadata["autoreset_mode"] = "SameStep"
    return env


def no_metadata(env):
    del env.metadata["autoreset_mode"]
    return env


FAULTS = [  # a faulty wrapper, the mode of what it wraps, the rule it violates, the violation
    (wrong_attribute, SAME_STEP, "autoreset_mode:", "SAME_STEP in the metadata and .*NEXT_STEP"),
    (wrong_metadata, SAME_STEP, "autoreset_mode:", "SameStep in the metadata"),
    (no_metadata, SAME_STEP, "autoreset_mode:", "None in the metadata"),
    (OutsideTheVocabulary, SAME_STEP, "spaces:", "outside observation_space at step 0"),
    (OutsideTheActions, SAME_STEP, "spaces:", "without the actions of step 0"),
    (NarrowLengths, SAME_STEP, "observations: int64", r"length int32 \(3,\), not int64 \(3,\)"),
    (GarbageBehindTheEnd, DISABLED, "observations: PAD", "in the prefix of slot 1 at step 0"),
    (BeginsByItself, SAME_STEP, "step:", "a step that was taken"),
    (BeginsWithAToken, DISABLED, "reset: nothing", "a length above 0"),
    (FlagsAsNumbers, NEXT_STEP, "terminated and truncated: bool", r"int64 \(3,\) at step 0"),
    (BothFlags, SAME_STEP, "terminated and truncated: never both", "both in slot 0 at step 4"),
    (DoubleRewards, SAME_STEP, "rewards: finite float32", "float64"),
    (RewardsWithoutAnEnd, SAME_STEP, "rewards: finite float32", "another number in slot 0"),
    (NoFinalMask, SAME_STEP, "SAME_STEP:", "_final_obs that does not say"),
    (ShowsTheEnd, SAME_STEP, "SAME_STEP:", "no new episode"),
    (NoFinalObservation, SAME_STEP, "SAME_STEP:", "no final_obs at step"),
    (NextEpisodeInFinalObs, SAME_STEP, "SAME_STEP:", "another length .* in final_obs in slot"),
    (PretendsSameStep, DISABLED, "SAME_STEP:", "_final_obs that does not say"),
    (PretendsNextStep, DISABLED, "NEXT_STEP:", "no new episode"),
    (PretendsDisabled, NEXT_STEP, "DISABLED:", "a change in slot"),
    (NeverTerminatesSlot1, DISABLED, "terminated: if and only if", "another flag in slot 1"),
    (NeverTruncatesSlot1, DISABLED, "truncated: if and only if", "another flag in slot 1"),
    (WritesAnotherToken, NEXT_STEP, "prefix: every step appends", "another observation"),
    (ForgetsTheSource, NEXT_STEP, "prefix: every step appends", "another observation"),
    (RewardsAfterTheEnd, DISABLED, "rewards: 0 after the end", "a reward in slot"),
    (RewardsAfterTheEnd, NEXT_STEP, "rewards: 0 after the end", "a reward in slot"),
    (OneBuffer, DISABLED, "observations: not changed", "0 steps after a reset"),
    (IgnoresTheSeed, SAME_STEP, "seed: gives the same", "another example"),
    (SeedsGlobally, SAME_STEP, "seed: touches no global", "a change in that of torch"),
    (SeedsNumpy, SAME_STEP, "seed: touches no global", "a change in that of numpy"),
    (SeedsRandom, SAME_STEP, "seed: touches no global", "a change in that of random"),
    (DrawsGlobally, SAME_STEP, "seed: touches no global", "a change in that of torch"),
    (IgnoresOption, SAME_STEP, "indices:", 'another info\\["index"\\]'),
    (HonorsIndicesInWordOnly, SAME_STEP, "indices:", "another source"),
    (SaysNoIndex, SAME_STEP, "indices:", 'no info\\["index"\\]'),
    (FinalInfoOfTheNextEpisode, SAME_STEP, "info", "another one in final_info at step"),
    (KeepsItsFirstIndex, SAME_STEP, "info", "that of another source at step"),
    (KeepsItsFirstIndex, NEXT_STEP, "info", "that of another source at step"),
    (IndexBeyondAllExamples, DISABLED, "info", "at step 0, which reset refuses by ValueError"),
    (IndexAtResetAlone, NEXT_STEP, "info", "none at step 0"),
    (IgnoresTheMask, DISABLED, "reset_mask:", "a change in a slot that it does not name"),
    (ResetsNothingByMask, DISABLED, "reset_mask:", "that it names and that did not begin"),
    (RewardsBySlot, SAME_STEP, "slots:", "another result of the same example"),
    (RefusesArrays, DISABLED, "actions:", "AttributeError.*no attribute 'masked_fill'"),
    (ArraysMoveTokensOn, SAME_STEP, "actions:", "another step"),
    (HoldsALambda, SAME_STEP, "pickle:", "pickle.*lambda"),
    (CopiesForget, SAME_STEP, "pickle:", "RuntimeError.*reset must come before all else"),
    (CopiesBeginAnew, SAME_STEP, "pickle:", "another step 4"),
    (CannotBeClosed, SAME_STEP, "close:", "OSError.*at the first call"),
    (ClosesOnce, SAME_STEP, "close:", "AttributeError.*at the second call"),
]


def make(mode, num_envs=3):
    return TextGenVectorEnv(TASK, num_envs, autoreset_mode=mode)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_the_vector_environment_passes(mode, num_envs):
    for seed in range(3):
        check_vector_env(make(mode, num_envs), seed=seed)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_vector_environment_with_arrays_passes(mode):
    check_vector_env(ArrayConversion(make(mode), env_xp=torch, target_xp=np))


def test_single_environments_in_a_sync_vector_env_pass_the_checks_that_apply():
    """Apply the checks to Gymnasium's `SyncVectorEnv` that it aims to pass.

    It returns float64 rewards, seeds each slot, gives all options to each and keeps functions.
    """
    env = SyncVectorEnv([lambda: TextGenEnv(TASK)] * 3, autoreset_mode=SAME_STEP)
    env.autoreset_mode = SAME_STEP
    recording = record_env(env, SpecialTokens(), seed=0)
    others = ("rewards: finite", "indices:", "info", "slots:", "pickle:")
    for check in CHECKS:
        if not check.rule.startswith(others):
            assert check.find_violation(recording) is None, check.rule


def test_an_environment_with_other_spaces_is_refused():
    with pytest.raises(
        TypeError, match=r"must be a Discrete and a Dict .* got Discrete\(2\) and Box"
    ):
        check_vector_env(gymnasium.make_vec("CartPole-v1", num_envs=2))


def test_an_environment_that_was_reset_before_is_refused():
    env = make(SAME_STEP)
    env.reset()
    with pytest.raises(ContractError, match=r"^step: .*check a new environment"):
        check_vector_env(env)


def test_a_wrapper_without_a_fault_passes():
    check_vector_env(Faulty(make(SAME_STEP)))


@pytest.mark.parametrize(("spoil", "mode", "rule", "violation"), FAULTS)
def test_a_fault_is_found_and_named_by_its_rule(spoil, mode, rule, violation):
    [check] = [check for check in CHECKS if check.rule.startswith(rule)]
    with pytest.raises(ContractError, match=violation) as caught:
        check_vector_env(spoil(make(mode)))
    assert str(caught.value).startswith(f"{check.rule}, found ")
    assert str(caught.value).endswith(f": {check.remedy}")


def test_every_check_has_a_fault_that_it_finds():
    rules = tuple(fault[2] for fault in FAULTS)
    assert all(check.rule.startswith(rules) for check in CHECKS)
