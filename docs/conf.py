import re

from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

import pymc_emf

project = "pymc-emf"
author = "The pymc-emf developers"
copyright = author
release = version = installed_version("pymc-emf")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Pages with a kernelspec are notebooks, which run when the pages are built.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "remove"
nb_merge_streams = True

autodoc_member_order = "bysource"
autosummary_generate = True
# Some file systems do not tell bijection.rst from Bijection.rst.
autosummary_filename_map = {"pymc_emf.bijection": "pymc_emf.bijection_function"}
# The template of a class lists its members; numpydoc need not list them again.
numpydoc_show_class_members = False

# The pages run their own code blocks ({testcode}, {doctest}). Docstrings are run by pytest.
doctest_test_doctest_blocks = ""

html_theme = "furo"
html_title = f"pymc-emf {release}"
html_static_path = ["_static"]


def warn_of_missing_names(app: Sphinx) -> None:
    """Warn, and so fail the build, if a public name is not in the API page."""
    listed = set(re.findall(r"^ {2,}(\w+)$", Path(app.srcdir, "api.md").read_text(), re.MULTILINE))
    for name in getattr(pymc_emf, "__all__", ()):
        if name not in listed and not name.startswith("__"):
            logging.getLogger(__name__).warning("api.md does not list pymc_emf.%s", name)


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", warn_of_missing_names)
