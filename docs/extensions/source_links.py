"""Links to files of this repository lead to the site's own pages of code.

Pages link to `../agents/imitkd.py` so that the link works wherever the repository is read. Such a
link to a module that the reference documents becomes one to its highlighted source; another file is
offered as it is.
"""

from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "agents": "textgen_agents",
    "experiments": "textgen_experiments",
    "textgen_env": "textgen_env",
}


def module_of(path: Path) -> str | None:
    """Return the name under which the file at `path` is imported; None if it is no module."""
    parts = path.with_suffix("").relative_to(ROOT).parts if path.is_relative_to(ROOT) else ()
    if not parts or path.suffix != ".py" or parts[0] not in PACKAGES:
        return None
    return ".".join([PACKAGES[parts[0]], *parts[1:]]).removesuffix(".__init__")


def link_modules(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace the links to documented modules."""
    if app.builder.format != "html":
        return
    known = getattr(app.env, "_viewcode_modules", {})
    here = Path(app.env.doc2path(docname)).parent
    for link in list(doctree.findall(addnodes.download_reference)):
        module = module_of((here / link["reftarget"]).resolve())
        if module is None or not known.get(module):
            continue
        uri = app.builder.get_relative_uri(docname, f"_modules/{module.replace('.', '/')}")
        link.replace_self(nodes.reference("", "", *link.children, refuri=uri, internal=True))


def forget_modules_without_code(app: Sphinx) -> Iterator[tuple[str, dict[str, object], str]]:
    """Leave modules that have no page of code out of the index of those that have one."""
    known = getattr(app.env, "_viewcode_modules", {})
    for module in [module for module, code in known.items() if not code]:
        del known[module]
    yield from ()


def without_navigation(
    _app: Sphinx, pagename: str, _template: str, context: dict[str, object], *_: object
) -> None:
    """Leave the tree of all pages out beside code, which there are hundreds of pages of.

    The theme makes that tree anew for every page, which takes longer than the highlighting.
    """
    if pagename.startswith("_modules/"):
        context["toctree"] = lambda **_: ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the change of links, and pages of code without a tree of all pages."""
    app.connect("doctree-resolved", link_modules)
    app.connect("html-page-context", without_navigation, priority=100)  # before the theme
    app.connect("html-collect-pages", forget_modules_without_code, priority=100)
    return {"parallel_read_safe": True}
