"""Settings of the documentation site, which `make docs` builds with warnings as errors."""

import os
import sys
import tomllib
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # notebooks train tiny models, which threads slow down
DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "extensions"))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

os.environ["TTY_COMPATIBLE"] = "0"  # tables that commands print in notebooks are plain text

with (DOCS.parent / "pyproject.toml").open("rb") as settings:
    CONTENT = tomllib.load(settings)
PROJECT = CONTENT["project"]

project = PROJECT["name"]
author = ", ".join(each["name"] for each in PROJECT["authors"])
copyright = author
version = release = PROJECT["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "command_help",
    "plain_docstrings",
    "source_links",
    "algorithm_table",
    "stored_results",
    "measured",
    "local_links",
]
exclude_patterns = ["_templates", "extensions"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "textgen-env"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"  # a cache would not see that the library has changed
nb_execution_raise_on_error = True
nb_execution_timeout = 1800  # seconds that a cell may take on a busy machine
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # warnings of libraries, with paths of the machine

autosummary_generate = True
# A page for each package: every page has links to all of them, which is slow where they are many.
autosummary_context = {"packages": CONTENT["tool"]["setuptools"]["packages"]}
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
autodoc_mock_imports = ["openenv"]  # installed by `make integrations` alone
autodoc_use_type_comments = False  # there are none, and looking for them takes long
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

linkcheck_timeout = 20  # seconds
linkcheck_anchors = False  # pages that are made by scripts have none to be seen
