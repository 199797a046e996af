"""The environment's contract as checks that can be run on any vector environment of its form.

`check_vector_env` plays an environment with drawn actions (`playing.py`) and holds what it shows
against `CHECKS` (`checks.py`). Left out: what rewards are worth, what an expert says, speed, and
environments with noise, whose slots draw different tokens and so break the clause of the neighbors.
"""

from collections.abc import Callable
from dataclasses import dataclass

from textgen_env.testing import checks
from textgen_env.testing.recorder import AnyVectorEnv, Recording, play
from textgen_env.types import SpecialTokens


class ContractError(AssertionError):
    """An environment breaks a clause of the contract, which the message begins with."""


@dataclass(frozen=True)
class Clause:
    """A part of the contract.

    Attributes:
        rule: what must hold.
        breach: what a play does against it, in words, or None.
        remedy: how an environment that breaks it is mended.
    """

    rule: str
    breach: Callable[[Recording], str | None]
    remedy: str


def check_vector_env(
    env: AnyVectorEnv, *, special: SpecialTokens | None = None, seed: int = 0
) -> None:
    """Play `env` with drawn actions, hold it against `CHECKS`, and close it.

    Args:
        env: not reset yet, since it is to refuse a step before that. Observations as
            `vector_env.observation_space` has them, as tensors or arrays; actions are given in the
            same form, options as arrays. Without noise.
        special: the ids of padding, start and end.
        seed: of the environment and of the actions.

    Raises:
        ContractError: a clause is broken; the first one.
        TypeError: the spaces are of another form, so that there is nothing to play.
    """
    record = play(env, special or SpecialTokens(), seed)
    for clause in CHECKS:
        found = clause.breach(record)
        if found is not None:
            raise ContractError(f"{clause.rule}, got {found}: {clause.remedy}")


CHECKS = (
    Clause(
        "autoreset_mode: the same AutoresetMode as attribute and in the metadata",
        checks.modes_agree,
        "set both to the mode in which it runs",
    ),
    Clause(
        "spaces: hold every observation and action",
        checks.spaces_hold,
        "make the batched spaces by gymnasium.vector.utils.batch_space, and keep to their bounds",
    ),
    Clause(
        "observations: int64, of the single space's shapes, a row for each slot",
        checks.observations_have_their_form,
        "stack int64 rows of the single space's shapes",
    ),
    Clause(
        "observations: PAD behind the length",
        checks.padding_follows,
        "fill source and prefix with PAD behind their lengths",
    ),
    Clause(
        "step: refused before the first reset",
        checks.step_waits_for_reset,
        "raise RuntimeError where there are no episodes yet, and check a new environment",
    ),
    Clause(
        "reset: nothing is written",
        checks.reset_begins,
        "empty the prefix of every slot and set its length to 0",
    ),
    Clause(
        "terminated and truncated: bool, one of each a slot",
        checks.flags_are_bool,
        "give both as bool of shape (num_envs,)",
    ),
    Clause(
        "terminated and truncated: never both",
        checks.never_both,
        "set truncated only where the end token was not written",
    ),
    Clause(
        "rewards: finite float32, one a slot",
        checks.rewards_are_numbers,
        "give float32 of shape (num_envs,), without infinities and NaN",
    ),
    Clause(
        "SAME_STEP: a slot that ends shows its next episode, the end is in final_obs",
        checks.same_step_refills,
        'refill in the step itself, and say where by info["_final_obs"] and info["_final_info"]',
    ),
    Clause(
        "NEXT_STEP: the step after an end ignores the action and begins the next episode",
        checks.next_step_refills,
        "keep which slots have ended, and begin their next episodes at the next call of step",
    ),
    Clause(
        "DISABLED: a slot that has ended stays as it is",
        checks.disabled_absorbs,
        "leave slots that have ended out of the transition, their flags too",
    ),
    Clause(
        "terminated: if and only if the end token was written",
        checks.terminated_by_end_token,
        "compare the token that was written with the end token, nothing else",
    ),
    Clause(
        "truncated: if and only if the limit was reached without the end token",
        checks.truncated_by_limit,
        "compare the length with the width of the prefix, after the token is written",
    ),
    Clause(
        "prefix: every step appends one token to it and changes nothing else",
        checks.prefix_grows,
        'write at the length, then add 1 to it; name other tokens than actions in info["written"]',
    ),
    Clause(
        "rewards: 0 after the end",
        checks.rewards_end,
        "give 0 where the episode was over before the step",
    ),
    Clause(
        "observations: not changed by later steps",
        checks.observations_stay,
        "hand out new tensors or copies, no buffers that are written into again",
    ),
    Clause(
        "seed: gives the same episodes again",
        checks.seed_reproduces,
        "draw all that is random from generators that reset(seed=...) seeds",
    ),
    Clause(
        "seed: touches no global generator",
        checks.global_generators_rest,
        "draw from self.np_random or a torch.Generator of the environment's own",
    ),
    Clause(
        "indices: name the example of each slot",
        checks.indices_choose,
        'take options["indices"] for the examples of the slots, and say them in info["index"]',
    ),
    Clause(
        'info["index"]: the example of the episode that is shown, in final_info of the ended one',
        checks.index_follows,
        "let the index change where a slot is refilled, and only there",
    ),
    Clause(
        "reset_mask: begins the slots that it names and no others",
        checks.mask_chooses,
        'begin where options["reset_mask"] is True, and leave all other slots alone',
    ),
    Clause(
        "slots: do not depend on their neighbors",
        checks.neighbors_do_not_matter,
        "compute every row from that row alone",
    ),
    Clause(
        "actions: arrays do what tensors do",
        checks.arrays_are_taken,
        "pass actions through torch.as_tensor",
    ),
    Clause(
        "pickle: a copy goes on as the environment itself",
        checks.copies_go_on,
        "keep no lambdas, open files or locks, and all of the state in attributes",
    ),
    Clause(
        "close: may be called, and called again",
        checks.closes,
        "override close_extras, not close, and let it find things closed",
    ),
)
"""What is looked at, in this order: later clauses may build on earlier ones."""
