import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from textgen_env.envs.rendering import as_picture
from textgen_env.envs.single_env import TextGenEnv
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.expert import NeuralExpert
from textgen_env.tasks.copy import CopyConfig, copy_task
from textgen_env.tasks.task import encode
from textgen_env.types import Trajectories

TASK = copy_task(
    CopyConfig(num_words=6, min_length=1, max_length=4, num_train=40, num_validation=2, num_test=2)
)
EXAMPLES = encode(TASK.train, TASK)


def make(num_envs=3, render_mode="ansi", **settings):
    return TextGenVectorEnv(TASK, num_envs, render_mode=render_mode, **settings)


def word(token):
    """Return the text of a token."""
    return TASK.tokenizer.decode([[token]])[0]


def test_render_returns_a_text_for_each_slot():
    env = make(2)
    _, info = env.reset(seed=0)
    sources = [TASK.train[index].source for index in info["index"].tolist()]
    assert env.render() == tuple(f"source: {source}\ntext:   " for source in sources)
    *_, info = env.step(torch.tensor([3, 2]))
    following = TASK.train[int(info["index"][1])].source
    first, second = env.render()
    assert first == f"source: {sources[0]}\ntext:   {word(3)}"
    assert second == f"source: {following}\ntext:   "


def test_render_shows_what_the_expert_would_have_written(make_table_model):
    expert = NeuralExpert(make_table_model(TASK, 4))
    env = make(3, expert=expert, autoreset_mode=AutoresetMode.DISABLED)
    _, info = env.reset(seed=0)
    assert all(len(text.splitlines()) == 2 for text in env.render())
    assert env.expert.queries.tokens == 0
    written = torch.tensor([[3, 2, 4], [5, 0, 7]])
    for actions in written:
        env.step(actions)
    rows = EXAMPLES.select(info["index"])
    actions = torch.tensor([[3, 5], [2, 0], [4, 7]])
    best = expert.best_actions(
        Trajectories(rows.source, actions, actions, actions > 0, rows.reference)
    )
    assert best[1, 0] != best[1, 1], "the test wants another answer behind the end"
    queried = expert.queries.tokens
    lines = [text.splitlines()[2] for text in env.render()]
    choices = [
        "</s>" if token == 2 else word(token) for token in best[[0, 1, 2], [1, 0, 1]].tolist()
    ]
    assert lines == [
        f"last:   {word(5)} (the expert: {choices[0]})",
        f"last:   </s> (the expert: {choices[1]})",
        f"last:   {word(7)} (the expert: {choices[2]})",
    ]
    assert env.expert.queries.tokens == queried + 3


def test_a_slot_with_an_empty_prefix_has_no_last_token(make_table_model):
    env = make(2, expert=NeuralExpert(make_table_model(TASK, 3)))
    env.reset(seed=0)
    env.step(torch.tensor([3, 2]))
    assert [len(text.splitlines()) for text in env.render()] == [3, 2]


def test_human_mode_prints_after_reset_and_every_step(capsys):
    env, silent = (make(2, render_mode=mode) for mode in ("human", "ansi"))
    for act in (lambda env: env.reset(seed=0), lambda env: env.step(torch.tensor([3, 2]))):
        act(env)
        act(silent)
        first, second = silent.render()
        assert capsys.readouterr().out == f"slot 0\n{first}\nslot 1\n{second}\n"
    assert env.render() is None
    assert capsys.readouterr().out.startswith("slot 0\nsource:")


def test_render_needs_a_reset_and_a_mode():
    with pytest.raises(
        RuntimeError, match=r"reset must come before all else.*call reset\(\) first"
    ):
        make().render()
    assert make(render_mode=None).render() is None
    with pytest.raises(
        ValueError, match=r"render_mode must be among .* or None, got 'depth_array'"
    ):
        make(render_mode="depth_array")


def test_a_picture_shows_the_text():
    env = make(2, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    env.step(torch.tensor([3, 4]))
    second = env.render()
    for before, after in zip(first, second, strict=True):
        assert before.shape == after.shape == (240, 640, 3)
        assert before.dtype == np.uint8
        assert 0 < (before < 128).sum() < (after < 128).sum(), "a word more"
        assert before[-1].min() == 255, "the rest is white"


@pytest.mark.parametrize("text", ["", "$x^2$ is $\\frac$ [/b] \x07", "八六零一。", "word " * 500])
def test_any_text_has_a_picture_of_the_same_size(text, recwarn):
    assert as_picture(f"source: {text}").shape == (240, 640, 3)
    assert not recwarn


def test_the_single_environment_gives_one_picture():
    env = TextGenEnv(TASK, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (240, 640, 3)
