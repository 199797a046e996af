"""The pages of the site, without building it: `make docs` does that, with warnings as errors.

Links are looked at as they are read in the repository, so that they work there and on the site.
"""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from textgen_agents import AGENTS
from textgen_env.envs.registration import env_id
from textgen_env.tasks import TASKS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALGORITHMS = sorted(set((DOCS / "algorithms").glob("*.md")) - {DOCS / "algorithms" / "index.md"})
TUTORIALS = sorted(set((DOCS / "tutorials").glob("*.md")) - {DOCS / "tutorials" / "index.md"})
PAGES = [*(page for page in DOCS.rglob("*.md") if "generated" not in page.parts)]
PAGES = sorted([*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
INCLUDED = {  # pages of the site that are files of another folder
    "log.md": ROOT / "experiments" / "LOG.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
}
SECTIONS = [
    "Algorithm",
    "Differences from the paper",
    "Options",
    "What its figures mean",
    "What was seen",
    "The file",
]
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.DOTALL | re.MULTILINE)
PAPER = re.compile(r"arXiv:\s*(\d{4}\.\d{4,5})|(https://[^\s;]+)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def prose_of(path):
    """Return the text of a page without its blocks of code."""
    return CODE.sub("", path.read_text(encoding="utf-8"))


def anchors_of(path):
    """Return the places that links may lead to: a heading in lower case, with hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose_of(INCLUDED.get(path.name, path)), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def source_of(agent):
    """Return the file of an algorithm as an algorithm's page includes it."""
    return f"../../agents/{Path(inspect.getfile(agent)).name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_places_that_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, place = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert not place or place in anchors_of(path), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_other_sites_are_encrypted(page):
    assert "](http://" not in prose_of(page)


@pytest.mark.parametrize("page", ALGORITHMS, ids=name_of)
def test_pages_of_algorithms_have_the_same_sections(page):
    assert re.findall(r"^## (.+)$", prose_of(page), re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_algorithm_has_a_page_with_its_file_and_papers(name):
    file = source_of(AGENTS[name])
    (page,) = [path for path in ALGORITHMS if file in path.read_text(encoding="utf-8")]
    text = page.read_text(encoding="utf-8")
    documentation = [
        inspect.getdoc(each) for each in (AGENTS[name], inspect.getmodule(AGENTS[name]))
    ]
    found = PAPER.findall("\n".join(filter(None, documentation)))
    papers = [number or address for number, address in found]
    assert papers, "its docstring or that of its file names the source"
    assert not [paper for paper in papers if paper not in text]


@pytest.mark.parametrize("page", ALGORITHMS, ids=name_of)
def test_options_are_those_of_the_agents_in_the_pages_file(page):
    text = page.read_text(encoding="utf-8")
    names = [name for name in AGENTS if source_of(AGENTS[name]) in text]
    shown = re.findall(r"^```{agent-options} (.+)\n((?:.+\n)*?)```", text, re.MULTILINE)
    commands = "".join(f"textgen train --agent {name} --help\n" for name in names)
    assert [(each.split(), body) for each, body in shown] == ([(names, commands)] if names else [])


@pytest.mark.parametrize("name", AGENTS)
def test_the_table_of_algorithms_finds_what_a_docstring_says(name):
    parts = r"Roll-in:\s+\S.+\sLabel:\s+\S.+\sLoss:\s+\S.+"
    assert re.search(parts, AGENTS[name].__doc__, re.DOTALL)


def rows_of_agents(page):
    """Return the agents that each row of the page's tables names, and the row's last cell."""
    rows = re.findall(r"^\|.*\|$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    named = [([name for name in AGENTS if f"`{name}`" in row], row) for row in rows]
    return [(names, row.strip("| ").split("|")[-1].strip()) for names, row in named if names]


@pytest.mark.parametrize("page", ["concepts/roll_ins.md", "data.md"])
def test_a_table_of_all_agents_names_each_once(page):
    named = [name for names, _ in rows_of_agents(page) for name in names]
    assert sorted(named) == sorted(AGENTS)


def test_the_page_about_data_says_which_agents_need_references():
    refused = {
        name for names, said in rows_of_agents("data.md") for name in names if "refused" in said
    }
    assert refused == {name for name in AGENTS if not AGENTS[name].learns_without_references}


def test_the_page_about_the_environment_has_every_id():
    text = (DOCS / "environment.md").read_text(encoding="utf-8")
    ids = re.findall(r"^\| `(TextGen/\w+-v0)` \|", text, re.MULTILINE)
    assert sorted(ids) == sorted(
        env_id(name) for name in TASKS if TASKS.origin_of(TASKS[name]) is None
    )


@pytest.mark.parametrize("page", TUTORIALS, ids=name_of)
def test_tutorials_are_executed(page):
    _, settings, text = page.read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(settings)["kernelspec"]["name"] == "python3"
    assert "```{code-cell} ipython3" in text
    assert "raises-exception" not in text
