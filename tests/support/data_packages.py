"""Packages that carry text, in a folder of their own."""

from textgen_env.tasks import packages


def install(file, folder, monkeypatch):
    """Install a package in `folder` whose file may have any content.

    Returns:
        Path of the file, which is not written yet.
    """
    path = folder / file.package / file.name
    path.parent.mkdir(parents=True)
    (path.parents[1] / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(packages, "content_digest", lambda _: file.sha256)
    return path
