"""How Sphinx builds the site. `make docs` is strict: a warning, an unknown reference or a dead inner link is an error.

Links into the documentation of other projects need their inventories from the network. `make docs ONLINE=1` fetches
them; without it such references are plain text, and the build needs nothing but the environment.
"""

import os
import shutil
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "_ext")]

for notebook in (ROOT / "notebooks").glob("*.ipynb"):  # Sphinx reads nothing outside of its folder
    shutil.copy2(notebook, DOCS / "notebooks")

_about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = _about["name"]
release = version = _about["version"]
author = "The lit-semantic-peft authors"
project_copyright = f"{author}, Apache-2.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "generated",  # docs/_ext
]
exclude_patterns = ["_build", "_ext"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_output_stderr = "remove"
nb_execution_mode = "off"  # the notebooks carry the outputs of a run on the real model
copybutton_exclude = ".linenos, .gp, .go"

default_role = "code"  # single backquotes in docstrings are code
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # of overridden methods of Lightning and torch
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
add_module_names = False

nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!lit_semantic_peft).*")] if not os.environ.get("ONLINE") else []
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "torchmetrics": ("https://lightning.ai/docs/torchmetrics/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "transformers": ("https://huggingface.co/docs/transformers/main/en", None),
        "peft": ("https://huggingface.co/docs/peft/main/en", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pyarrow": ("https://arrow.apache.org/docs", None),
    }
    if os.environ.get("ONLINE")
    else {}
)

html_theme = "furo"
html_title = "lit-semantic-peft"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["tables.js"]
html_show_sphinx = False
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which a browser refuses to a page from a file
html_theme_options = {"navigation_with_keys": True}
