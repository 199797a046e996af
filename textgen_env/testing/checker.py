"""Contract of the environment, as checks that run on any vector environment of its form.

`check_vector_env` steps an environment with random actions (`recorder.py`) and applies `CHECKS`
(`checks.py`) to what it returned. Left out: the values of rewards, the expert's answers, speed, and
environments with noise, whose slots draw different tokens and so depend on their neighbors.
"""

from collections.abc import Callable
from dataclasses import dataclass

from textgen_env.testing import checks
from textgen_env.testing.recorder import AnyVectorEnv, Recording, record_env
from textgen_env.types import SpecialTokens


class ContractError(AssertionError):
    """Violation of the contract; the message begins with the rule."""


@dataclass(frozen=True)
class Check:
    """One rule of the contract.

    Attributes:
        rule: the rule that must hold.
        find_violation: returns in words how a recording violates it, or None.
        remedy: a way to correct an environment that violates it.
    """

    rule: str
    find_violation: Callable[[Recording], str | None]
    remedy: str


def check_vector_env(
    env: AnyVectorEnv, *, special: SpecialTokens | None = None, seed: int = 0
) -> None:
    """Step `env` with random actions, apply `CHECKS` in order, and close it.

    Args:
        env: not reset yet, because a step before the first reset must fail. Observations must have
            the form of `vector_env.observation_space`, as tensors or arrays; actions are given in
            the same form, options as arrays. It must have no noise.
        special: the ids of padding, start and end.
        seed: of the environment and of the actions.

    Raises:
        ContractError: the first rule that is violated.
        TypeError: the spaces have another form, so that no actions can be drawn.
    """
    recording = record_env(env, special or SpecialTokens(), seed)
    for check in CHECKS:
        violation = check.find_violation(recording)
        if violation is not None:
            raise ContractError(f"{check.rule}, found {violation}: {check.remedy}")


CHECKS = (
    Check(
        "autoreset_mode: the same AutoresetMode as attribute and in the metadata",
        checks.modes_agree,
        "set both to the mode in which it runs",
    ),
    Check(
        "spaces: hold every observation and action",
        checks.spaces_hold,
        "make the batched spaces by gymnasium.vector.utils.batch_space, and keep to their bounds",
    ),
    Check(
        "observations: int64, of the single space's shapes, a row for each slot",
        checks.observations_have_their_form,
        "stack int64 rows of the single space's shapes",
    ),
    Check(
        "observations: PAD behind the length",
        checks.padding_follows,
        "fill source and prefix with PAD behind their lengths",
    ),
    Check(
        "step: refused before the first reset",
        checks.step_waits_for_reset,
        "raise RuntimeError where there are no episodes yet, and check a new environment",
    ),
    Check(
        "reset: nothing is written",
        checks.reset_begins,
        "empty the prefix of every slot and set its length to 0",
    ),
    Check(
        "terminated and truncated: bool, one of each a slot",
        checks.flags_are_bool,
        "give both as bool of shape (num_envs,)",
    ),
    Check(
        "terminated and truncated: never both",
        checks.never_both,
        "set truncated only where the end token was not written",
    ),
    Check(
        "rewards: finite float32, one a slot",
        checks.rewards_are_numbers,
        "give float32 of shape (num_envs,), without infinities and NaN",
    ),
    Check(
        "SAME_STEP: a slot that ends shows its next episode, the end is in final_obs",
        checks.same_step_refills,
        'refill in the step itself, and say where by info["_final_obs"] and info["_final_info"]',
    ),
    Check(
        "NEXT_STEP: the step after an end ignores the action and begins the next episode",
        checks.next_step_refills,
        "keep which slots have ended, and begin their next episodes at the next call of step",
    ),
    Check(
        "DISABLED: a slot that has ended stays as it is",
        checks.disabled_absorbs,
        "leave slots that have ended out of the transition, their flags too",
    ),
    Check(
        "terminated: if and only if the end token was written",
        checks.terminated_by_end_token,
        "compare the token that was written with the end token, nothing else",
    ),
    Check(
        "truncated: if and only if the limit was reached without the end token",
        checks.truncated_by_limit,
        "compare the length with the width of the prefix, after the token is written",
    ),
    Check(
        "prefix: every step appends one token to it and changes nothing else",
        checks.prefix_grows,
        'write at the length, then add 1 to it; name other tokens than actions in info["written"]',
    ),
    Check(
        "rewards: 0 after the end",
        checks.rewards_end,
        "give 0 where the episode was over before the step",
    ),
    Check(
        "observations: not changed by later steps",
        checks.observations_stay,
        "return new tensors or copies, no buffers that are written into again",
    ),
    Check(
        "seed: gives the same episodes again",
        checks.seed_reproduces,
        "draw all that is random from generators that reset(seed=...) seeds",
    ),
    Check(
        "seed: touches no global generator",
        checks.global_generators_rest,
        "draw from self.np_random or a torch.Generator of the environment's own",
    ),
    Check(
        "indices: name the example of each slot",
        checks.indices_choose,
        'take options["indices"] for the examples of the slots, and say them in info["index"]',
    ),
    Check(
        'info["index"]: the example of the episode that is shown, in final_info of the ended one',
        checks.index_follows,
        "let the index change where a slot is refilled, and only there",
    ),
    Check(
        "reset_mask: begins the slots that it names and no others",
        checks.mask_chooses,
        'begin where options["reset_mask"] is True, and leave all other slots alone',
    ),
    Check(
        "slots: do not depend on their neighbors",
        checks.neighbors_do_not_matter,
        "compute every row from that row alone",
    ),
    Check(
        "actions: arrays do what tensors do",
        checks.arrays_are_taken,
        "pass actions through torch.as_tensor",
    ),
    Check(
        "pickle: a copy continues as the environment itself",
        checks.copies_go_on,
        "keep no lambdas, open files or locks, and all of the state in attributes",
    ),
    Check(
        "close: may be called, and called again",
        checks.closes,
        "override close_extras, not close, and let it find things closed",
    ),
)
"""The checks in the order in which they are applied: later ones may rely on earlier ones."""
