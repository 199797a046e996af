import pytest

from textgen_env.tasks.prompts import check_prompt, prompted, with_expert_prompts, with_prompts
from textgen_env.tasks.task import Pair, TextTask
from textgen_env.tokenizers.subword import Tokenizer

PAIRS = [Pair("a", "b"), Pair("c", "d", "clean c")]
TEMPLATE = "Translate {{de}}: {source}\n"


def test_the_source_stands_in_the_template():
    check_prompt("prompt", TEMPLATE)
    assert prompted("a {x} b", TEMPLATE) == "Translate {de}: a {x} b\n"


def test_the_student_reads_prompts_and_the_expert_its_own_view():
    expected = [Pair("Translate {de}: a\n", "b"), Pair("Translate {de}: c\n", "d", "clean c")]
    assert with_prompts(PAIRS, TEMPLATE) == expected


def test_the_expert_reads_prompts_and_the_student_what_it_did():
    task = TextTask("t", Tokenizer.from_words("abcd"), PAIRS, PAIRS[:1], PAIRS[1:], 5, 5, {})
    changed = with_expert_prompts(task, "{source}!")
    assert changed.train == [Pair("a", "b", "a!"), Pair("c", "d", "clean c!")]
    assert changed.validation == [Pair("a", "b", "a!")]
    assert changed.test == [Pair("c", "d", "clean c!")]
    assert with_expert_prompts(task, "{source}") is task


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Translate", "got none in 'Translate': write braces twice"),
        ("{source} {target}", r"got \['source', 'target'\]"),
        ("{}", r"got \[''\]"),
        ("{source.__class__}", "and no other"),
        ("{source[0]}", "and no other"),
        ("{source} {", "must be a template, got .*Single"),
        ("{source}}", "must be a template"),
    ],
)
def test_other_templates_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        check_prompt("prompt", template)
