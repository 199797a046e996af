"""Figures of the house: sizes, docstrings and names of the three packages.

`python tests/project/figures.py` prints them beside their aims; `--list` adds the places that miss
one. `test_architecture.py` holds the code to them.
"""

import ast
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).parents[2]
FOLDERS = ("textgen_env", "agents", "experiments")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES = 400
MIN_DOCSTRING_WORDS = 5
OPENS_WITH_A_QUESTION = re.compile(r"(What|How|Whether|Who|Which|Where|Of|As|That)\b")
NO_VERB = re.compile(
    """A|An|The|It|Its|They|Their|Them|He|His|She|Her|We|Our|You|Your|I|My|One|Ones|This|That
    |These|Those|Some|Any|All|Every|Each|Both|Either|Neither|No|None|Nothing|Such|Same|Other
    |Another|Only|In|On|At|By|For|From|To|Of|With|Without|Within|Into|Under|Over|After|Before
    |Between|Beside|During|Per|Since|Until|Up|Down|Out|Off|Two|Three|Four|Five|Six|Seven|Eight
    |Nine|Ten|Half|First|Second|Third|Last|Next|If|When|While|Because|Not|And|Or|But|What|How
    |Whether|Who|Which|Where|As""",
    re.VERBOSE,
)
NAMES_OF_MANY_FILES = {"main", "build", "__all__", "__version__"}
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def docstrings() -> Iterator[tuple[str, Documented, str]]:
    """Yield the place, the node and the text of each docstring."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Documented) and (text := ast.get_docstring(node)):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                yield f"{place}: {text.splitlines()[0]}", node, text


def questioning_docstrings() -> list[str]:
    """Return the docstrings that open with a question word or preposition."""
    return [place for place, _, text in docstrings() if OPENS_WITH_A_QUESTION.match(text)]


def short_docstrings() -> list[str]:
    """Return the docstrings with too few words to be a sentence that explains something."""
    return [place for place, _, text in docstrings() if len(text.split()) < MIN_DOCSTRING_WORDS]


def functions_without_verb() -> list[str]:
    """Return the docstrings of functions, but of properties, that open with no imperative verb."""
    return [
        place
        for place, node, text in docstrings()
        if isinstance(node, ast.FunctionDef) and not is_property(node) and not has_verb(text)
    ]


def is_property(node: ast.FunctionDef) -> bool:
    """Return whether a decorator makes an attribute of the function."""
    return any("property" in ast.unparse(each) for each in node.decorator_list)


def has_verb(text: str) -> bool:
    """Return whether the first word of `text` may be an imperative verb.

    Ruff's D401 looks at the mood of the verbs that it knows.
    """
    first = text.split()[0].rstrip(".,;:")
    return bool(re.fullmatch(r"[A-Z][a-z]+", first)) and not NO_VERB.fullmatch(first)


def long_files() -> list[str]:
    """Return the files over the limit."""
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in FILES}
    return [f"{path}: {length}" for path, length in lengths.items() if length > MAX_FILE_LINES]


def function_lines() -> list[int]:
    """Return the lines of code in the body of each function, its docstring not counted."""
    counts = []
    for path in FILES:
        text = path.read_text()
        code = lines_of_code(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[ast.get_docstring(node) is not None :]
                lines = range(body[0].lineno, node.end_lineno + 1) if body else ()
                counts.append(len(code.intersection(lines)))
    return counts


def lines_of_code(text: str) -> set[int]:
    """Return the numbers of the lines with more than a comment."""
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    return found


def ambiguous_names() -> list[str]:
    """Return the top-level names that more than one file defines, with these files."""
    places = defaultdict(list)
    for path in FILES:
        for name in defined_names(ast.parse(path.read_text())) - NAMES_OF_MANY_FILES:
            places[name].append(str(path.relative_to(ROOT)))
    return [
        f"{name}: {', '.join(files)}" for name, files in sorted(places.items()) if len(files) > 1
    ]


def defined_names(tree: ast.Module) -> set[str]:
    """Return the functions, classes and values that a module defines at its top level."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def report(*, with_places: bool) -> str:
    """Return each figure, its aim in brackets, and the places that it counts if they are wanted."""
    percentiles = quantiles(function_lines(), n=100, method="inclusive")
    lines = [
        f"files: {len(FILES)}",
        f"docstrings: {len(list(docstrings()))}",
        f"lines of a function, p50 and p95: {percentiles[49]:.0f}, {percentiles[94]:.0f} (5, 21)",
    ]
    for figure, places in {
        "docstrings that open with What, How, Of ...": questioning_docstrings(),
        f"docstrings below {MIN_DOCSTRING_WORDS} words": short_docstrings(),
        "functions whose docstring opens with no verb": functions_without_verb(),
        f"files over {MAX_FILE_LINES} lines": long_files(),
        "top-level names of more than one file": ambiguous_names(),
    }.items():
        lines += [
            f"{figure}: {len(places)} (0)",
            *(f"    {each}" for each in places if with_places),
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(report(with_places="--list" in sys.argv[1:]))
