import pickle

import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.support.toy import permitted
from tests.support.waiting import NoWaiting, OnMetaDevice, set_sync_is_free
from tests.textgen_env.envs.test_vector_env import assert_same
from textgen_env.envs.continuous_batching import READ_AHEAD, PrefillPool, next_positions
from textgen_env.envs.rewards import no_reward
from textgen_env.envs.vector_env import TextGenVectorEnv
from textgen_env.experts.dynamic_oracle import DynamicOracle
from textgen_env.experts.expert import NeuralExpert, NoExpert
from textgen_env.experts.scripted import ScriptedExpert
from textgen_env.models.ensemble import Ensemble
from textgen_env.models.transformer import Transformer, TransformerConfig
from textgen_env.tasks.task import encode
from textgen_env.testing import check_vector_env
from textgen_env.types import ShapeError, Trajectories, Writer

SAME_STEP, NEXT_STEP, DISABLED = (
    AutoresetMode.SAME_STEP,
    AutoresetMode.NEXT_STEP,
    AutoresetMode.DISABLED,
)


@pytest.fixture(params=[True, False], ids=["sync is free", "sync is not free"])
def sync_is_free(request, monkeypatch):
    """Run a test as on a CPU, where reading values is free, and as on an accelerator."""
    set_sync_is_free(monkeypatch, request.param)
    return request.param


class Order:
    """Endless order whose example i has the number i as source; `read` notes the sources read."""

    def __init__(self):
        self.read = []

    def source_at(self, position):
        return position[:, None]

    def start(self, source, max_steps):
        self.read.append(source[:, 0].tolist())
        return Numbers(source[:, 0])


class Numbers:
    """Cache that holds the number of each row."""

    def __init__(self, number):
        self.number = number

    def reset_rows(self, mask, fresh, index):
        return Numbers(fresh.number[index].where(mask, self.number))


@pytest.mark.parametrize("probability", [0.05, 0.5, 1.0])
def test_a_slot_takes_the_prefilled_row_of_its_example(sync_is_free, probability):
    slots, order, generator = 5, Order(), torch.Generator().manual_seed(0)
    pool = PrefillPool(order.start, order.source_at, max_steps=9)
    numbers, first = Numbers(torch.arange(slots)), torch.tensor(slots)
    for _ in range(60):
        begun = torch.rand(slots, generator=generator) < probability
        expected = next_positions(first, begun).where(begun, numbers.number)
        numbers = pool.refill(numbers, begun, first)
        assert torch.equal(numbers.number, expected)
        first = first + begun.sum()
    if sync_is_free:
        read, used = sum(map(len, order.read)), int(first) - slots
        assert read <= 1.5 * used + slots, "rows are used up before more are read"
    else:
        assert len(order.read) == 60 / READ_AHEAD + 0.5, "a pool lasts for READ_AHEAD steps"


def test_slots_after_the_end_of_the_order_take_the_last_row(monkeypatch):
    set_sync_is_free(monkeypatch, True)
    order = Order()
    pool = PrefillPool(
        order.start,
        lambda position: position.clamp(max=6).unique_consecutive()[:, None],
        max_steps=9,
    )
    numbers, everywhere = Numbers(torch.arange(4)), torch.ones(4, dtype=torch.bool)
    for first, expected in ((4, [4, 5, 6, 6]), (8, [6, 6, 6, 6])):
        numbers = pool.refill(numbers, everywhere, torch.tensor(first))
        assert numbers.number.tolist() == expected
    assert order.read == [[4, 5, 6], [6]]


def test_slots_take_the_next_examples_in_turn():
    begun = torch.tensor([False, True, False, True, True])
    assert next_positions(torch.tensor(7), begun)[begun].tolist() == [7, 8, 9]


@pytest.fixture
def teacher(tiny_task):
    torch.manual_seed(1)
    config = TransformerConfig(tiny_task.tokenizer.vocab_size, 16, num_heads=2, feed_forward=32)
    return Transformer(config).eval()


@pytest.fixture
def expert(teacher):
    return NeuralExpert(teacher)


def make_querying_env(task, expert, mode, num_envs=4, **settings):
    return TextGenVectorEnv(
        task,
        num_envs,
        expert=expert,
        ask_expert=True,
        autoreset_mode=mode,
        **settings,
    )


def some_actions(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, env.vocab_size, (steps, env.num_envs), generator=generator)


def best_actions(env, index, prefix):
    """Return the expert's best action at every state of one finished episode."""
    prefix = prefix[None]
    trajectory = Trajectories(
        source=env.examples.source[index][None],
        actions=prefix,
        writer=torch.full_like(prefix, Writer.STUDENT),
        mask=prefix != 0,
        reference=env.examples.reference[index][None],
    )
    return env.expert.best_actions(trajectory)[0, : int((prefix != 0).sum())].tolist()


@pytest.fixture(params=["neural", "ensemble", "scripted", "reference"])
def any_expert(request, tiny_task, teacher, make_table_model):
    """Return an expert of each kind."""
    vocab_size = tiny_task.tokenizer.vocab_size
    if request.param == "scripted":
        return ScriptedExpert(last_or_next, vocab_size)
    if request.param == "reference":
        return DynamicOracle(encode(tiny_task.train, tiny_task), vocab_size)
    if request.param == "ensemble":
        return NeuralExpert(Ensemble((teacher, make_table_model(tiny_task, 3))))
    return NeuralExpert(teacher)


def last_or_next(source, prefix, length):
    """Return one more than the last token, or than the source's first where none is written."""
    last = prefix.gather(1, (length - 1).clamp(min=0)[:, None]).squeeze(1)
    return last.where(length > 0, source[:, 0]).clamp(max=9) + 1


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.usefixtures("sync_is_free")
def test_expert_actions_equal_those_of_the_parallel_pass(tiny_task, any_expert, mode):
    env = make_querying_env(tiny_task, any_expert, mode)
    _, info = env.reset(seed=0)
    answers = [[] for _ in range(env.num_envs)]
    episodes = 0
    for actions in some_actions(env, env.max_steps + 3 if mode is DISABLED else 100):
        for row, action in enumerate(info["expert_action"].tolist()):
            if info["_expert_action"][row]:
                answers[row].append(action)
            else:
                assert action == env.special.pad
        shown, _, terminated, truncated, info = env.step(permitted(env, actions))
        for row in (terminated | truncated).nonzero().flatten().tolist():
            if mode is SAME_STEP:
                final, index = info["final_obs"], info["final_info"]["index"][row]
            else:
                final, index = shown, info["index"][row]
            assert answers[row] == best_actions(env, index, final["prefix"][row])
            episodes += 1
            answers[row] = answers[row] if mode is DISABLED else []
    assert episodes > (READ_AHEAD + 1) * env.num_envs or mode is DISABLED, (
        "more than the pool holds"
    )


@pytest.mark.usefixtures("sync_is_free")
def test_a_mask_resets_the_expert_in_its_slots_only(tiny_task, expert):
    env = make_querying_env(tiny_task, expert, DISABLED, num_envs=2)
    env.reset(options={"indices": [3, 4]})
    _, _, _, _, before = env.step(torch.tensor([5, 6]))
    options = {"indices": [7, 0], "reset_mask": torch.tensor([True, False])}
    _, info = env.reset(options=options)
    assert info["expert_action"][1] == before["expert_action"][1]
    answers = [info["expert_action"]]
    for action in (8, 9):
        answers.append(env.step(torch.tensor([action, action]))[-1]["expert_action"])
    first, second = torch.stack(answers, 1).tolist()
    assert first == best_actions(env, 7, torch.tensor([8, 9, 2]))
    assert second == best_actions(env, 4, torch.tensor([6, 8, 9, 2]))[1:]


def test_rewards_see_the_logits_of_expert_and_policy(tiny_task, expert):
    seen = []

    def reward(step):
        seen.append(step)
        return no_reward(step)

    env = make_querying_env(tiny_task, expert, SAME_STEP, reward=reward)
    _, info = env.reset(seed=0)
    for actions in some_actions(env, 20):
        policy_logits = torch.zeros(env.num_envs, env.vocab_size)
        best = info["expert_action"]
        _, _, _, _, info = env.step(actions, policy_logits)
        logits = seen[-1].expert_logits.clone()
        logits[:, [env.special.pad, env.special.start]] = float("-inf")
        assert torch.equal(logits.argmax(-1), best), "of the state before the step"
        assert seen[-1].policy_logits is policy_logits


def test_without_ask_expert_the_expert_is_not_queried(tiny_task, expert):
    env = TextGenVectorEnv(tiny_task, 2, expert=expert)
    _, info = env.reset(seed=0)
    assert "expert_action" not in info
    assert "expert_action" not in env.step(torch.tensor([3, 2]))[-1]
    assert env.expert.queries.forwards == 0


def test_each_state_is_one_query(tiny_task, expert):
    env = make_querying_env(tiny_task, expert, SAME_STEP)
    env.reset(seed=0)
    for actions in some_actions(env, 9):
        env.step(actions)
    assert env.expert.queries.tokens == 10 * env.num_envs


@pytest.mark.parametrize("mode", AutoresetMode)
def test_an_environment_that_queries_its_expert_keeps_the_contract(tiny_task, expert, mode):
    check_vector_env(make_querying_env(tiny_task, expert, mode))


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.usefixtures("sync_is_free")
def test_a_pickled_copy_continues_with_its_expert(tiny_task, expert, mode):
    """Copy amid episodes, when some of the prefilled sources are used up."""
    env = make_querying_env(tiny_task, expert, mode)
    env.reset(seed=0)
    for actions in some_actions(env, 9):
        env.step(permitted(env, actions))
    copy = pickle.loads(pickle.dumps(env))
    for drawn in some_actions(env, 30, seed=1):
        actions = permitted(env, drawn)
        assert_same(env.step(actions), copy.step(actions))
    assert copy.expert.queries.tokens == env.expert.queries.tokens
    assert_same(env.reset(), copy.reset())


def texts_of_expert(task, expert, num_envs):
    """Return the expert's text of each example, written by following its actions."""
    env = make_querying_env(task, expert, SAME_STEP, num_envs)
    _, info = env.reset(seed=0)
    found = {}
    while len(found) < len(env.examples):
        _, _, _, _, info = env.step(info["expert_action"])
        prefixes, index = info["final_obs"]["prefix"], info["final_info"]["index"]
        for row in info["_final_obs"].nonzero().flatten().tolist():
            found[int(index[row])] = prefixes[row].tolist()
    return found


def test_an_expert_writes_the_same_text_in_any_number_of_slots(
    tiny_task, teacher, make_table_model
):
    """Write greedily with the sum of two models, whose texts differ and end."""
    expert = NeuralExpert(Ensemble((teacher, make_table_model(tiny_task, 3))))
    alone = texts_of_expert(tiny_task, expert, 1)
    assert len({str(row) for row in alone.values()}) > 5, "the test wants texts that differ"
    assert texts_of_expert(tiny_task, expert, 3) == texts_of_expert(tiny_task, expert, 64) == alone


def test_ask_expert_without_an_expert_is_refused(tiny_task):
    for missing in (None, NoExpert()):
        with pytest.raises(ValueError, match="expert must be given where ask_expert is True"):
            TextGenVectorEnv(tiny_task, expert=missing, ask_expert=True)


def test_examples_are_taken_in_the_given_order(tiny_task):
    env = TextGenVectorEnv(tiny_task, 2)
    ends = torch.full((2,), 2)
    assert env.reset(seed=0, options={"order": [9, 8, 7]})[1]["index"].tolist() == [9, 8]
    assert [env.step(ends)[-1]["index"].tolist() for _ in range(2)] == [[7, 9], [8, 7]]
    drawn = TextGenVectorEnv(tiny_task, 2).reset(seed=0)[1]["index"]
    assert torch.equal(env.reset(seed=0)[1]["index"], drawn)
    with pytest.raises(ValueError, match=r"order must be in \[0, 64\), got 3 to 64"):
        env.reset(options={"order": [3, 64]})
    for order, message in (([], "hold at least one integer, got none"), (5, "have shape")):
        with pytest.raises(ShapeError, match=f"order must {message}"):
            env.reset(options={"order": order})


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_step_that_queries_the_expert_never_waits_for_the_device(
    tiny_task, expert, mode, monkeypatch
):
    set_sync_is_free(monkeypatch, False)
    env = make_querying_env(tiny_task, expert, mode)
    env.reset(seed=0)
    actions = some_actions(env, 3 * READ_AHEAD)
    with NoWaiting():
        for action in actions:
            env.step(action)


class NoGenerator:
    """Stand-in for a generator on a device that has none."""

    def __init__(self, device):
        self.device = device

    def manual_seed(self, seed):
        pass


@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_tensor_of_a_step_is_on_the_device_and_unread(tiny_task, mode, monkeypatch):
    """Step on the meta device, which stands for CUDA.

    `FakeTensorMode` makes tensors on "cuda", but a torch built for the CPU alone has no operator
    that takes them.
    """
    monkeypatch.setattr(torch, "Generator", NoGenerator)
    config = TransformerConfig(tiny_task.tokenizer.vocab_size, 16, num_heads=2, feed_forward=32)
    with torch.device("meta"):
        teacher = Transformer(config).eval()
    env = make_querying_env(tiny_task, NeuralExpert(teacher), mode, device="meta")
    env.reset(seed=0)
    actions = torch.zeros(env.num_envs, dtype=torch.int64, device="meta")
    with OnMetaDevice():
        for _ in range(READ_AHEAD + 1):
            env.step(actions)
