"""Named configurations of Lin et al. 2020 (arXiv:2009.07253): data sets, models and settings.

What this project lacks is replaced by the nearest equivalent (docs/data.md): SRU layers by GRU with
as many parameters, the paper's tokenizers by a joint one of bytes. The teachers of IWSLT14 and
CNN/DailyMail have configurations of their own; for WMT16 the paper took a public teacher.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from textgen_agents.agent import Agent
from textgen_agents.imitkd import ImitKD, ImitKDStar, ImitKDStarFull, ImitKDVariant
from textgen_agents.mle import MLE
from textgen_agents.rollouts.schedules import Exponential
from textgen_agents.seqkd import SeqInter
from textgen_agents.training.config import LearnerConfig
from textgen_env.generation.sampling import Sampling
from textgen_env.models.recurrent import RecurrentConfig
from textgen_env.models.transformer import TransformerConfig
from textgen_env.tasks.hub import HubConfig
from textgen_env.tasks.task import Limits
from textgen_experiments.runs.experiment import Experiment

IWSLT14 = HubConfig(
    path="bbaaaa/iwslt14-de-en",
    revision="refs/convert/parquet",
    source="translation.de",
    reference="translation.en",
    lower_case=True,
    name="iwslt14",
    limits=Limits(max_tokens=125, length_ratio=None),
    vocab_size=14_000,
)
WMT16 = HubConfig(
    path="wmt/wmt16",
    configuration="de-en",
    source="translation.en",
    reference="translation.de",
    name="wmt16",
    limits=Limits(max_tokens=100, length_ratio=None),
    vocab_size=32_000,
)
CNN_DAILYMAIL = HubConfig(
    path="abisee/cnn_dailymail",
    configuration="3.0.0",
    source="article",
    reference="highlights",
    cut_source=400,
    name="cnn_dailymail",
    limits=Limits(max_tokens=128, length_ratio=None),
    vocab_size=30_522,
)
WMT16_PAIRS = 4_500_000  # pairs of an epoch
LOW_DATA_PAIRS = 180_000  # 4 % of WMT16


def iwslt14(agent: Agent) -> Experiment:
    """Return IWSLT14 German to English, recurrent student; seqinter starts from a trained one."""
    factor, warmup = (0.01, 2000) if isinstance(agent, SeqInter) else (0.1, 5000)
    return Experiment(
        task=IWSLT14,
        teacher=None,
        student=RecurrentConfig(width=368, num_encoder_layers=2, num_decoder_layers=2),
        agent=_mixing(agent, base=200.0, batches_per_rollout=4, sampling=Sampling(top_k=5)),
        learner=_noam(
            factor, warmup=warmup, updates=80_000, batch_size=128, clip=5.0, evaluate_every=1000
        ),
        validation_pairs=1000,
    )


def iwslt14_transformer(agent: Agent) -> Experiment:
    """Return IWSLT14 German to English, Transformer student."""
    return replace(iwslt14(agent), student=TransformerConfig(feed_forward=768))


def iwslt14_teacher(agent: Agent) -> Experiment:
    """Return IWSLT14 German to English, the teacher by mle; `agent` is ignored."""
    del agent
    return Experiment(
        task=IWSLT14,
        teacher=None,
        student=TransformerConfig(num_encoder_layers=8, num_decoder_layers=8),
        agent=MLE(),
        learner=_noam(
            0.1, warmup=10_000, updates=50_000, batch_size=128, clip=5.0, evaluate_every=1000
        ),
        validation_pairs=1000,
    )


def wmt16(agent: Agent) -> Experiment:
    """Return WMT16 English to German, all pairs: 15 epochs."""
    return Experiment(
        task=WMT16,
        teacher=None,
        student=RecurrentConfig(width=592, num_encoder_layers=4, num_decoder_layers=4),
        agent=_mixing(agent, base=2.0 if _starred(agent) else 200.0, batches_per_rollout=1),
        learner=_epochs_of_wmt16(WMT16_PAIRS, batch_size=512),
        validation_pairs=1000,
    )


def wmt16_low_data(agent: Agent) -> Experiment:
    """Return WMT16 English to German, 4 % of the pairs: 15 epochs."""
    return replace(
        wmt16(agent),
        learner=_epochs_of_wmt16(LOW_DATA_PAIRS, batch_size=128),
        train_pairs=LOW_DATA_PAIRS,
    )


def cnn_dailymail(agent: Agent) -> Experiment:
    """Return summarization of CNN/DailyMail, recurrent student."""
    if "label_smoothing" in vars(agent):
        agent = replace(cast("Any", agent), label_smoothing=0.1)
    return Experiment(
        task=CNN_DAILYMAIL,
        teacher=None,
        student=RecurrentConfig(width=368, num_encoder_layers=2, num_decoder_layers=2),
        agent=_mixing(agent, base=10.0, batches_per_rollout=4),
        learner=_noam(
            0.1, warmup=2000, updates=200_000, batch_size=32, clip=5.0, evaluate_every=2000
        ),
        validation_pairs=1000,
    )


def cnn_dailymail_teacher(agent: Agent) -> Experiment:
    """Return summarization of CNN/DailyMail, the teacher by mle; `agent` is ignored."""
    del agent
    learner = _noam(
        0.03, warmup=500, updates=25_000, batch_size=256, clip=math.inf, evaluate_every=250
    )
    return Experiment(
        task=CNN_DAILYMAIL,
        teacher=None,
        student=TransformerConfig(
            width=512,
            num_heads=8,
            feed_forward=2048,
            num_encoder_layers=6,
            num_decoder_layers=6,
        ),
        agent=MLE(label_smoothing=0.1),
        learner=replace(learner, accumulate=8),
        validation_pairs=1000,
    )


PAPER: dict[str, Callable[[Agent], Experiment]] = {
    "iwslt14": iwslt14,
    "iwslt14_transformer": iwslt14_transformer,
    "iwslt14_teacher": iwslt14_teacher,
    "wmt16": wmt16,
    "wmt16_low_data": wmt16_low_data,
    "cnn_dailymail": cnn_dailymail,
    "cnn_dailymail_teacher": cnn_dailymail_teacher,
}


def _mixing(
    agent: Agent, *, base: float, batches_per_rollout: int, sampling: Sampling | None = None
) -> Agent:
    """Return the agent with the paper's prefix mixing; `sampling` is for one-token labels only."""
    if not isinstance(agent, ImitKDVariant):
        return agent
    draws = sampling if isinstance(agent, ImitKD | ImitKDStar) else None
    return replace(
        agent, beta=Exponential(base), batches_per_rollout=batches_per_rollout, sampling=draws
    )


def _starred(agent: Agent) -> bool:
    return isinstance(agent, ImitKDStar | ImitKDStarFull)


def _epochs_of_wmt16(pairs: int, batch_size: int) -> LearnerConfig:
    """Return settings for 15 epochs, each evaluated four times."""
    epoch = pairs // batch_size
    return _noam(
        0.05,
        warmup=4000,
        updates=15 * epoch,
        batch_size=batch_size,
        clip=2.0,
        evaluate_every=epoch // 4,
    )


def _noam(
    factor: float,
    *,
    warmup: int,
    updates: int,
    batch_size: int,
    clip: float,
    evaluate_every: int,
) -> LearnerConfig:
    """Return settings for Adam with rate factor * min(update^-1/2, update * warmup^-3/2)."""
    return LearnerConfig(
        updates=updates,
        batch_size=batch_size,
        learning_rate=factor * warmup**-0.5,
        warmup=warmup,
        decay=None,
        weight_decay=0.0,
        clip=clip,
        evaluate_every=evaluate_every,
    )
