"""Bootstrap over seeds and sentences: its limits, and samples drawn by hand."""

import random

import numpy as np
import pytest

from textgen_agents.evaluation import seed_bootstrap
from textgen_agents.evaluation.bleu_metric import bleu_of_counts, ngram_counts
from textgen_agents.evaluation.quality import bleu, bootstrap
from textgen_agents.evaluation.seed_bootstrap import (
    SAMPLING_SEED,
    SeededTexts,
    bootstrap_over_seeds,
)

WORDS = list("abcdefgh")


def texts(seed, spoiled, size=30):
    """Return references and texts in which a share of the words is another."""
    rng, source = random.Random(seed), random.Random(0)
    references = [" ".join(source.choices(WORDS, k=source.randint(5, 12))) for _ in range(size)]
    changed = [
        " ".join(rng.choice(WORDS) if rng.random() < spoiled else word for word in text.split())
        for text in references
    ]
    return references, changed


REFERENCES, GOOD = texts(1, 0.2)
SAMPLES = 80
_, GOOD_TOO = texts(2, 0.25)
_, BAD = texts(3, 0.5)
_, BAD_TOO = texts(4, 0.4)


@pytest.mark.parametrize("language", [None, "zh"])
def test_counts_of_all_texts_give_their_corpus_bleu(language):
    total = ngram_counts(GOOD, REFERENCES, language).sum(0)
    assert bleu_of_counts(total, language) == pytest.approx(bleu(GOOD, REFERENCES, language), 1e-12)


def test_with_one_run_a_system_it_is_sacrebleus_paired_bootstrap():
    systems = [SeededTexts((0,), [each]) for each in (BAD, GOOD, BAD_TOO, BAD)]
    found = bootstrap_over_seeds(systems, REFERENCES, 0)
    known = bootstrap([BAD, GOOD, BAD_TOO, BAD], REFERENCES, 0)
    assert [each.confidence for each in found] == pytest.approx([each.confidence for each in known])
    assert [each.p_value for each in found[1:]] == [each.p_value for each in known[1:]]
    assert found[0].p_value is None
    assert found[3].p_value == 1.0
    assert found[1].bleu == pytest.approx(bleu(GOOD, REFERENCES))


def test_runs_that_wrote_the_same_texts_are_as_one_run():
    one = bootstrap_over_seeds([SeededTexts((0,), [GOOD])], REFERENCES)
    three = bootstrap_over_seeds([SeededTexts((0, 1, 2), [GOOD] * 3)], REFERENCES)
    assert three[0].bleu == pytest.approx(one[0].bleu)
    assert three[0].confidence == pytest.approx(one[0].confidence)


def test_the_interval_is_that_of_means_over_drawn_runs_and_sentences(monkeypatch):
    monkeypatch.setattr(seed_bootstrap, "NUM_RESAMPLES", SAMPLES)
    found = bootstrap_over_seeds([SeededTexts((5, 6), [GOOD, BAD])], REFERENCES)[0]
    rng = np.random.default_rng(SAMPLING_SEED)
    sentences = rng.choice(len(REFERENCES), size=(SAMPLES, len(REFERENCES)))
    drawn = rng.integers(2, size=(SAMPLES, 2))
    means = []
    for places, runs in zip(sentences, drawn, strict=True):
        own = [
            bleu([(GOOD, BAD)[run][place] for place in places], [REFERENCES[p] for p in places])
            for run in runs
        ]
        means.append(sum(own) / 2)
    means.sort()
    assert found.confidence == pytest.approx((means[-3] - means[2]) / 2)  # 2 of 80 on each side
    assert found.bleu == pytest.approx((bleu(GOOD, REFERENCES) + bleu(BAD, REFERENCES)) / 2)


def test_seeds_widen_the_interval_where_runs_differ():
    apart = bootstrap_over_seeds([SeededTexts((0, 1), [GOOD, BAD])], REFERENCES)[0]
    alike = bootstrap_over_seeds([SeededTexts((0, 1), [GOOD, GOOD_TOO])], REFERENCES)[0]
    assert apart.confidence > 1.5 * alike.confidence


def test_groups_of_the_same_seeds_draw_the_same_ones():
    """What both groups' runs of a seed share is no difference between the groups."""
    base = SeededTexts((0, 1), [GOOD, BAD])
    paired, other = SeededTexts((0, 1), [GOOD_TOO, BAD_TOO]), SeededTexts((2, 3), [GOOD, BAD])
    found = bootstrap_over_seeds([base, paired, other, base], REFERENCES, 0)
    assert found[3].p_value == 1.0
    assert found[2].p_value < 1.0, "the same texts of other seeds may be another draw"


@pytest.mark.parametrize(
    "system", [SeededTexts((), []), SeededTexts((0,), [GOOD, BAD]), SeededTexts((0,), [GOOD[1:]])]
)
def test_a_system_without_a_text_for_each_seed_and_reference_is_refused(system):
    with pytest.raises(ValueError, match="texts must be"):
        bootstrap_over_seeds([system], REFERENCES)
