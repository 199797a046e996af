"""Message-level environment for OpenEnv: a source is read, a whole text is written.

Other libraries of agents write texts, not tokens. Here the first observation is a source, and the
one action its text, which is played token by token in `TextGenEnv`: rewards are the same. Each
session of a server has an environment of its own; task and expert are shared. Needs the package
openenv-core. Sequences of messages are left out, because a task's examples have one answer.
"""

import random
from collections.abc import Sequence
from functools import partial

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from openenv.core.env_server import (  # pyright: ignore[reportMissingImports] - an extra's
    Action,
    Environment,
    Observation,
    State,
    create_fastapi_app,
)
from pydantic import Field, StrictBool, StrictStr

from textgen_env.envs.rewards import Reward, sentence_bleu
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.experts.expert import Expert
from textgen_env.tasks.task import SPLITS, Pair, TextTask, encode
from textgen_env.types import Examples, Trajectories

MAX_CHARACTERS = 100_000  # of a text; longer ones are refused before they are split into tokens


class MessageError(ValueError):
    """Request that the environment cannot follow; the session goes on."""


class WriteText(Action):
    """The text for the source, and what is asked about it.

    Attributes:
        text: without end token; it may be empty.
        expert_log_probs: ask the expert how probable each token is.
    """

    text: StrictStr = Field(description="the whole text for the source")
    expert_log_probs: StrictBool = Field(
        default=False, description="return the expert's log-probability of each token"
    )


class SourceAndScore(Observation):
    """The source, and after the text its tokens; `reward` and `done` are the base's.

    Attributes:
        source: text to write an answer to.
        tokens: ids of the written text, end token included; None before it.
        expert_log_probs: log-probability of each of these tokens after those before it, in nats;
            None unless it was asked for.
    """

    source: str
    tokens: list[int] | None = None
    expert_log_probs: list[float] | None = None


class ChosenExample(State):
    """The example of the current episode.

    Attributes:
        split: train, validation or test; None before the first `reset`.
        index: place in the split, from 0; None before the first `reset`.
    """

    split: str | None = None
    index: int | None = None


class MessageEnvironment(Environment[WriteText, SourceAndScore, ChosenExample]):
    """Environment whose episode is one text for one source of a task.

    Args:
        task: the task.
        expert: the oracle; None where clients ask for no log-probabilities.
        reward: the reward of a step of `TextGenEnv`; an episode's is their sum.
        ask_expert: query the expert at every step, for rewards that depend on it.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(
        self,
        task: TextTask,
        *,
        expert: Expert | None = None,
        reward: Reward = sentence_bleu,
        ask_expert: bool = False,
    ) -> None:
        super().__init__()
        self.task, self.expert = task, expert
        self.reward, self.ask_expert = reward, ask_expert
        self._splits: dict[str, Sequence[Pair]] = dict(
            zip(SPLITS, (task.train, task.validation, task.test), strict=True)
        )
        self._random = random.Random()
        self._pair: Pair | None = None
        self._state = ChosenExample()

    @property
    def state(self) -> ChosenExample:
        """Example and number of texts of the current episode."""
        return self._state

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str = "train",
        index: int | None = None,
    ) -> SourceAndScore:
        """Begin the episode of one example and return its source.

        Args:
            seed: seed of the draws from here on; None to draw on.
            episode_id: name of the episode, kept in the state.
            split: train, validation or test.
            index: place of the example in its split, from 0; None to draw one.

        Raises:
            MessageError: the split does not exist, or has no such place.
        """
        if split not in SPLITS:
            raise MessageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        pairs = self._splits[split]
        if seed is not None:
            self._random.seed(seed)
        if index is None:
            index = self._random.randrange(len(pairs))
        if type(index) is not int or not 0 <= index < len(pairs):
            raise MessageError(
                f"index must be a whole number from 0 to {len(pairs) - 1} in split {split}, got "
                f"{index!r}"
            )
        self._pair = pairs[index]
        self._state = ChosenExample(episode_id=episode_id, split=split, index=index)
        return SourceAndScore(source=self._pair.source)

    def step(self, action: WriteText, timeout_s: float | None = None) -> SourceAndScore:
        """Write the text and return its reward, which ends the episode.

        Args:
            action: the text.
            timeout_s: unused, as OpenEnv's own server does not pass it on.

        Raises:
            MessageError: called before `reset` or after the end, the text is too long or is no
                text, or log-probabilities are asked for where there is no expert.
        """
        del timeout_s
        if self._pair is None:
            raise MessageError(
                "reset must be called before step, and again after each text, got step: over HTTP "
                "a session needs the client's WebSocket"
            )
        if action.expert_log_probs and self.expert is None:
            raise MessageError(
                "expert_log_probs must be false where the server has no expert, got true"
            )
        tokens = self._encode(action.text)
        pair = self._pair
        examples = encode([pair], self.task)
        log_probs = self._log_probs(examples, tokens) if action.expert_log_probs else None
        reward = self._play(examples, tokens)
        self._pair = None
        self._state.step_count += 1
        return SourceAndScore(
            source=pair.source,
            tokens=tokens,
            expert_log_probs=log_probs,
            reward=reward,
            done=True,
        )

    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a text with the end token.

        Raises:
            MessageError: the text is too long, or is no text.
        """
        if len(text) > MAX_CHARACTERS:
            raise MessageError(
                f"text must have at most {MAX_CHARACTERS:,} characters, got {len(text):,}"
            )
        try:
            text.encode()
            (tokens,) = self.task.tokenizer.encode_targets([text])
        except ValueError as error:  # half of a surrogate pair, or a word that is no token
            raise MessageError(f"text must be one that the tokenizer can split: {error}") from error
        limit = self.task.max_target_length - 1
        if len(tokens) > limit:
            raise MessageError(f"text must have at most {limit} tokens, got {len(tokens)}")
        return [*tokens, self.task.tokenizer.special.end]

    def _play(self, examples: Examples, tokens: list[int]) -> float:
        """Return the sum of the rewards of all tokens of a text."""
        env = TextGenEnv(
            self.task,
            examples=examples,
            expert=self.expert,
            ask_expert=self.ask_expert,
            reward=self.reward,
        )
        env.reset()
        return sum(float(env.step(torch.tensor(token))[1]) for token in tokens)

    def _log_probs(self, examples: Examples, tokens: list[int]) -> list[float]:
        """Return the expert's log-probability of each token, in nats."""
        assert self.expert is not None, "`step` refuses the question without an expert"
        actions = torch.tensor([tokens])
        special = self.task.tokenizer.special
        written = Examples(examples.source, actions, examples.expert_source)
        logits = self.expert.logits(Trajectories.from_examples(written, special))
        log_probs = logits.float().log_softmax(-1).gather(2, actions[..., None])
        return log_probs.flatten().tolist()


def openenv_app(
    task: TextTask,
    *,
    expert: Expert | None = None,
    reward: Reward = sentence_bleu,
    ask_expert: bool = False,
    max_sessions: int = 64,
) -> FastAPI:
    """Return OpenEnv's server of a task, to be run by uvicorn or another ASGI server.

    Args:
        task: the task.
        expert: as in `MessageEnvironment`.
        reward: as in `MessageEnvironment`.
        ask_expert: as in `MessageEnvironment`.
        max_sessions: clients that may be connected at a time; a further one gets an error.
    """
    make = partial(MessageEnvironment, task, expert=expert, reward=reward, ask_expert=ask_expert)
    app = create_fastapi_app(make, WriteText, SourceAndScore, max_concurrent_envs=max_sessions)

    @app.exception_handler(MessageError)
    async def refuse(request: Request, error: MessageError) -> JSONResponse:
        """Answer a request over HTTP as those over WebSockets are."""
        del request
        return JSONResponse({"detail": str(error)}, status_code=422)

    return app
