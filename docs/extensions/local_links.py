"""Check of the built pages: whatever they link to on this site is there.

Sphinx checks the links that it resolves itself. This reads the HTML, so links made by hand, images,
style sheets and places within pages count too. Links to other sites are left to
`sphinx-build -b linkcheck`, which needs a network.
"""

from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.errors import SphinxError


class Links(HTMLParser):
    """Targets of a page's links, and the places that others can link to.

    Attributes:
        targets: values of `href` and `src`, as they are written.
        places: values of `id`.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the targets and places of one element."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            elif name == "id" and value:
                self.places.add(value)


@cache
def links_of(page: Path) -> Links:
    """Return the links of the page, which is read once."""
    return Links(page.read_text(encoding="utf-8"))


def broken_links(folder: Path) -> Iterator[str]:
    """Yield a line for each link of the pages in `folder` to something that is not there.

    Pages of code are led to, but not read: Sphinx links them back from names that they re-export.
    """
    pages = folder.rglob("*.html")
    for page in sorted(each for each in pages if each.relative_to(folder).parts[0] != "_modules"):
        for target in links_of(page).targets:
            if not leads_somewhere(page, target):
                yield f"{page.relative_to(folder)}: {target}"


def leads_somewhere(page: Path, target: str) -> bool:
    """Return whether `target` is of another site, or a file and a place in it that exist."""
    url = urlsplit(target)
    if url.scheme or url.netloc:
        return True
    file = (page.parent / unquote(url.path)).resolve() if url.path else page
    if file.is_dir():
        file = file / "index.html"
    if not file.is_file():
        return False
    if not url.fragment or file.suffix != ".html":
        return True
    return unquote(url.fragment) in links_of(file).places


def check_links(app: Sphinx, problem: Exception | None) -> None:
    """Fail the build if a page has a broken link.

    Raises:
        SphinxError: it names every page and link.
    """
    if problem is None and app.builder.name == "html":
        links_of.cache_clear()
        found = list(broken_links(Path(app.outdir)))
        if found:
            raise SphinxError("\n".join(["links must lead to something, got:", *found]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the check after the build."""
    app.connect("build-finished", check_links)
    return {"parallel_read_safe": True}
