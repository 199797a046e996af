"""The loop with real agents and a small student, in float32 unless said otherwise."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.updates import (
    CONFIG,
    Log,
    Sorted,
    StoppedError,
    assert_same_bits,
    gradients_of_an_update,
    no_score,
    weights_of,
)
from textgen_agents.agent import Agent
from textgen_agents.dagger import DAgger
from textgen_agents.distillm import DistiLLM
from textgen_agents.imitkd import ImitKD, ImitKDFull
from textgen_agents.losses.labels import Dense, TopKWithTail
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Constant, Linear
from textgen_agents.switch import Switch
from textgen_agents.training.checkpoint import TrainingStopped, copy_weights
from textgen_agents.training.learner import Learner, LearnerConfig, TrainingError
from textgen_env.models.recurrent import Recurrent, RecurrentConfig

FIGURES = {
    "loss",
    "gradient_norm",
    "learning_rate",
    "tokens_per_second",
    "student_share",
    "expert_share",
    "teacher_tokens",
}


def test_the_rate_rises_stays_and_falls():
    config = LearnerConfig(updates=100, learning_rate=0.8, warmup=10, decay=0.4)
    expected = {0: 0.08, 4: 0.4, 9: 0.8, 10: 0.8, 59: 0.8, 60: 0.8, 80: 0.4, 95: 0.1, 99: 0.02}
    assert {update: config.learning_rate_at(update) for update in expected} == pytest.approx(
        expected
    )


def test_the_rate_can_stay_at_its_highest():
    config = LearnerConfig(updates=5, learning_rate=0.1, warmup=0, decay=0.0)
    assert [config.learning_rate_at(update) for update in range(5)] == [0.1] * 5


@pytest.mark.parametrize("warmup", [1, 30, 200])
@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_the_rate_is_positive_and_never_above_its_highest(warmup, decay):
    config = LearnerConfig(updates=50, learning_rate=0.1, warmup=warmup, decay=decay)
    rates = [config.learning_rate_at(update) for update in range(50)]
    assert min(rates) > 0
    assert max(rates) <= 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"checkpoint_every": -1.0}, "checkpoint_every must be at least 0 minutes, got -1.0"),
        ({"batch_size": 6, "accumulate": 4}, r"accumulate must divide batch_size \(6\), got 4"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\] or None, got 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**settings)


@pytest.mark.parametrize("inner", [MLE(), ImitKD(beta=Constant(0.5)), ImitKDFull()])
def test_accumulation_does_not_change_the_gradient(make_learner, inner):
    agent, config = Sorted(inner), replace(CONFIG, batch_size=8, clip=1e9)
    counts = []
    loss_of = Sorted.loss

    def counting(self, batch, student, expert):
        counts.append(int(batch.trajectories.mask.sum()))
        return loss_of(self, batch, student, expert)

    expected, figures = gradients_of_an_update(make_learner(agent, config, "1"))
    assert figures["gradient_norm"] > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sorted, "loss", counting)
        for accumulate in (2, 4):
            parts = make_learner(agent, replace(config, accumulate=accumulate), str(accumulate))
            gradients, others = gradients_of_an_update(parts)
            torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-7)
            for name in ("loss", "gradient_norm", "student_share", "teacher_tokens"):
                assert others[name] == pytest.approx(figures[name], rel=1e-5), name
    assert len(counts) == 2 + 4
    assert len(set(counts[2:])) > 1, "the test wants parts with unequal numbers of actions"


def test_rollouts_of_a_pool_are_cut_into_batches_of_similar_length(make_learner):
    learner, seen = make_learner(ImitKD(beta=Constant(1.0), batches_per_rollout=4), CONFIG), []
    for batch in learner._batches(next(learner.rollouts())):
        seen.append(batch.trajectories.mask.sum(1))
    assert len(torch.cat(seen)) == 4 * CONFIG.batch_size
    seen.sort(key=lambda lengths: float(lengths.float().mean()))
    joined = torch.cat(seen)
    assert torch.equal(joined, joined.sort().values)
    assert joined[0] < joined[-1]


def test_gradients_are_clipped_to_their_largest_norm(make_learner):
    gradients, figures = gradients_of_an_update(make_learner(MLE(), replace(CONFIG, clip=0.01)))
    assert figures["gradient_norm"] > 0.01, "the norm before clipping is logged"
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "agent", [MLE(), ImitKD(), ImitKDFull(), DAgger(), DistiLLM(student_fraction=0.8, rise=0.0)]
)
def test_every_update_is_logged_with_its_figures(make_learner, agent):
    log, learner = Log(), make_learner(agent)
    counters = learner.train(no_score, log)
    assert list(log) == list(range(1, 13))
    asked = [record["teacher_tokens"] for record in log.values()]
    for update, record in log.items():
        coefficients = agent.coefficients((update - 1) / 12)
        assert record.keys() == FIGURES | coefficients.keys()
        assert coefficients.items() <= record.items()
        assert record["learning_rate"] == CONFIG.learning_rate_at(update - 1)
    assert asked == sorted(asked)
    assert asked[-1] == counters.teacher_tokens == learner.env.expert.queries.tokens
    assert log.validation == {update: {"bleu": 0.0} for update in (4, 8, 12)}
    assert counters.validation == [0.0, 0.0, 0.0]
    assert counters.update == 12
    assert counters.seconds > 0


def test_the_loss_falls(make_learner):
    log = Log()
    make_learner(MLE(), replace(CONFIG, updates=60, evaluate_every=60)).train(no_score, log)
    losses = [record["loss"] for record in log.values()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize(
    ("pool", "every", "updates", "expected"),
    [
        (1, 4, 10, [4, 8, 10]),
        (4, 6, 24, [8, 12, 20, 24]),
        (4, 1, 10, [4, 8, 10]),
        (3, 100, 7, [7]),
    ],
)
def test_evaluations_come_after_the_pool_in_which_they_are_due(
    make_learner, pool, every, updates, expected
):
    log, agent = Log(), ImitKDFull(batches_per_rollout=pool)
    config = replace(CONFIG, updates=updates, evaluate_every=every, batch_size=2)
    make_learner(agent, config).train(no_score, log)
    assert list(log.validation) == expected
    assert list(log) == list(range(1, updates + 1))


def test_the_best_weights_on_validation_are_kept(make_learner):
    learner, evaluated = make_learner(MLE()), []

    def evaluate(model):
        assert not model.training
        evaluated.append(weights_of(model))
        return [10.0, 30.0, 20.0][len(evaluated) - 1]

    counters = learner.train(evaluate, Log())
    assert (counters.best, counters.best_update) == (30.0, 8)
    assert_same_bits(load_file(learner.best), evaluated[1])
    assert_same_bits(weights_of(learner.student), evaluated[2])


def test_of_equal_scores_the_later_weights_are_kept(make_learner):
    learner, log = make_learner(MLE()), Log()
    counters = learner.train(no_score, log)
    assert (counters.best, counters.best_update) == (no_score(None), 12)
    assert_same_bits(load_file(learner.best), weights_of(learner.student))


@dataclass(frozen=True)
class Spoiled(Agent):
    """Maximum likelihood, until the loss of one update is spoiled."""

    at: int
    spoil: Callable[[Tensor], Tensor]
    losses: list = field(default_factory=list)

    def collect(self, context):
        return MLE().collect(context)

    def loss(self, batch, student, expert) -> Tensor:
        loss = MLE().loss(batch, student, expert)
        self.losses.append(loss)
        return self.spoil(loss) if len(self.losses) == self.at + 1 else loss


@pytest.mark.parametrize(
    "spoil",
    [
        lambda loss: loss * float("nan"),
        lambda loss: loss + float("inf"),
        lambda loss: loss + (loss - loss).sqrt(),  # finite, with a gradient that is not
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_no_checkpoint(make_learner, spoil):
    learner, log = make_learner(Spoiled(at=6, spoil=spoil)), Log()
    kept = []

    def remember(update, record):
        log(update, record)
        kept.append(learner.last.read_bytes() if learner.last.exists() else b"")

    with pytest.raises(TrainingError, match=r"at update 6; the last good checkpoint is kept"):
        learner.train(no_score, remember)
    assert list(log) == [1, 2, 3, 4, 5, 6]
    assert kept[-1]
    assert learner.last.read_bytes() == kept[-1]
    assert all(value.isfinite().all() for value in learner.student.state_dict().values())
    resumed = make_learner(MLE())
    assert resumed.counters.update == 4
    assert resumed.train(no_score, Log()).update == 12


RESUMED = [
    (MLE(), CONFIG),
    (ImitKD(beta=Constant(0.5)), CONFIG),
    (ImitKDFull(), replace(CONFIG, reference_weight=0.5, ewc_weight=2.0, accumulate=2)),
    (DAgger(beta=Linear(), capacity=40), CONFIG),
    (DAgger(beta=Constant(0.5), label=Dense(), batches_per_rollout=2, capacity=12), CONFIG),
    (DistiLLM(student_fraction=0.5, rise=0.3, fresh=Constant(0.2), capacity=9), CONFIG),
    (Switch(), CONFIG),
]


@pytest.mark.parametrize(("agent", "config"), RESUMED)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop_after", [2, 6, 8])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    make_learner, monkeypatch, agent, config, precision, stop_after
):
    monkeypatch.setattr("textgen_agents.training.regularizers.FISHER_BATCHES", 3)
    options = {"config": config, "precision": precision, "dropout": 0.3}
    scores = {4: 5.0, 8: 3.0, 12: 4.0}
    unbroken, stopped = (make_learner(agent, folder=name, **options) for name in "ab")
    expected = unbroken.train(lambda _: scores[unbroken.counters.update], Log())
    with pytest.raises(StoppedError):
        stopped.train(lambda _: scores[stopped.counters.update], Log(stop_after))
    resumed = make_learner(agent, folder="b", seed=7, **options)
    begun = resumed.counters.update
    assert begun == {2: 0, 6: 4, 8: 4}[stop_after]
    if not begun:
        resumed.student.load_state_dict(make_learner(MLE(), folder="c").student.state_dict())
    log = Log()
    counters = resumed.train(lambda _: scores[resumed.counters.update], log)
    assert list(log) == list(range(begun + 1, 13))
    assert_same_bits(weights_of(resumed.student), weights_of(unbroken.student))
    for file in ("last", "best"):
        paths = getattr(resumed, file), getattr(unbroken, file)
        assert_same_bits(*map(load_file, paths))
    assert replace(counters, seconds=0.0) == replace(expected, seconds=0.0)


def test_a_threshold_that_was_found_trains_as_the_same_one_given(make_learner):
    found, log = make_learner(Switch(), folder="found"), Log()
    threshold = found.train(no_score, log).calibration
    given = make_learner(Switch(threshold=threshold), folder="given")
    given.train(no_score, Log())
    assert {record["calibration"] for record in log.values()} == {threshold}
    assert_same_bits(weights_of(given.student), weights_of(found.student))
    assert given.counters.teacher_tokens < found.counters.teacher_tokens, "writing anew is counted"


def test_the_share_of_each_writer_is_logged(make_learner):
    shares = {}
    for name, agent in {"mle": MLE(), "mixed": DAgger(beta=Constant(0.5))}.items():
        record = gradients_of_an_update(make_learner(agent, folder=name))[1]
        shares[name] = record["student_share"], record["expert_share"]
    assert shares["mle"] == (0.0, 0.0)
    assert 0 < shares["mixed"][1] < 1
    assert sum(shares["mixed"]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "agent",
    [MLE(), ImitKD(beta=Linear(0.0), batches_per_rollout=4), DAgger(capacity=40)],
)
def test_a_run_that_is_asked_to_stop_goes_on_from_there(make_learner, agent):
    unbroken = make_learner(agent, folder="a")
    expected = unbroken.train(no_score, Log())
    looks = 0

    def is_stopping():
        nonlocal looks
        looks += 1
        return looks % 2 == 0

    for _ in range(12):
        stopped = make_learner(agent, folder="b")
        try:
            counters = stopped.train(no_score, Log(), is_stopping=is_stopping)
            break
        except TrainingStopped:
            assert stopped.last.is_file()
    assert looks >= 2
    assert_same_bits(weights_of(stopped.student), weights_of(unbroken.student))
    assert_same_bits(load_file(stopped.last), load_file(unbroken.last))
    assert replace(counters, seconds=0.0) == replace(expected, seconds=0.0)


def test_checkpoints_by_time_change_nothing(make_learner):
    agent = DAgger(capacity=40, batches_per_rollout=2)
    often = replace(CONFIG, checkpoint_every=0.0)
    unbroken = make_learner(agent, folder="a")
    unbroken.train(no_score, Log())
    with pytest.raises(StoppedError):
        make_learner(agent, folder="b", config=often).train(no_score, Log(7))
    resumed = make_learner(agent, folder="b", config=often, seed=7)
    assert resumed.counters.update == 6
    resumed.train(no_score, Log())
    assert_same_bits(weights_of(resumed.student), weights_of(unbroken.student))
    assert_same_bits(load_file(resumed.last), load_file(unbroken.last))


def test_without_its_buffer_a_run_does_not_go_on(make_learner):
    """It would learn from other rows: the test above must see the buffer."""
    agent = DAgger(beta=Constant(0.5), capacity=40)
    unbroken, stopped = (make_learner(agent, folder=name) for name in "ab")
    unbroken.train(no_score, Log())
    with pytest.raises(StoppedError):
        stopped.train(no_score, Log(stop_after=6))
    resumed = make_learner(agent, folder="b")
    resumed.buffer = agent.make_buffer(resumed.env)
    resumed.train(no_score, Log())
    expected = weights_of(unbroken.student)
    assert any(
        not torch.equal(value, expected[name])
        for name, value in weights_of(resumed.student).items()
    )


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (DAgger(capacity=23), "capacity must be at least 24, the rows that are collected"),
        (DistiLLM(capacity=5), "capacity must be at least 6, the rows that are collected"),
    ],
)
def test_a_buffer_smaller_than_a_rollout_is_refused_before_training(make_learner, agent, message):
    with pytest.raises(ValueError, match=message):
        make_learner(agent)


def test_labels_of_more_tokens_than_there_are_are_refused_before_training(make_learner):
    with pytest.raises(ValueError, match=r"k must be at most 11, .*, got 1000"):
        make_learner(DAgger(label=TopKWithTail(k=1000)))


@pytest.mark.parametrize("more", [-2, 5])
def test_a_student_with_other_tokens_is_refused_before_training(env, tmp_path, more):
    student = Recurrent(RecurrentConfig(env.vocab_size + more, width=16))
    with pytest.raises(
        ValueError, match=r"^student must have the .* of 11 tokens, got one of \d+:"
    ):
        Learner(MLE(), student, env=env, folder=tmp_path, config=CONFIG, precision=torch.float32)


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", -0.1), ("clip", -1.0), ("clip", 0.0), ("warmup", -1)]
)
def test_settings_that_would_not_train_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .* got {value}"):
        LearnerConfig(**{name: value})


def test_a_finished_run_has_nothing_left_to_do(make_learner):
    learner = make_learner(MLE())
    learner.train(no_score, Log())
    log, again = Log(), make_learner(MLE(), seed=7)
    assert again.train(no_score, log).update == 12
    assert not log
    assert_same_bits(weights_of(again.student), weights_of(learner.student))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(make_learner):
    def run(folder, seed):
        learner = make_learner(ImitKDFull(), replace(CONFIG, seed=seed), folder, dropout=0.3)
        torch.manual_seed(len(folder))  # global random state is of no account
        learner.train(no_score, Log())
        return weights_of(learner.student)

    first = run("a", 0)
    assert_same_bits(run("aa", 0), first)
    assert any(not torch.equal(value, first[name]) for name, value in run("b", 1).items())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_student_stays_in_float32_and_acts_in_the_runs_precision(make_learner, precision):
    learner, seen = make_learner(ImitKDFull(), precision=precision), []

    def evaluate(model):
        seen.append({parameter.dtype for parameter in model.parameters()})
        return 0.0

    learner.train(evaluate, Log())
    assert {parameter.dtype for parameter in learner.student.parameters()} == {torch.float32}
    assert seen == [{precision}] * 3


def test_weights_are_copied_in_the_precision_of_the_target(tiny_student, make_student):
    target = copy.deepcopy(make_student(seed=9)).bfloat16()
    copy_weights(tiny_student, target)
    for old, new in zip(target.parameters(), tiny_student.parameters(), strict=True):
        assert torch.equal(old, new.bfloat16())
