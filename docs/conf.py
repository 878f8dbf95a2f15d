"""Settings of Sphinx for the pages of this folder and the reference of the package; `make docs` builds them.

Nothing is fetched: formulas become MathML, which browsers draw themselves.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ["COLUMNS"] = "100"  # of the help of commands
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import gen  # noqa: E402

project, author, release, copyright = "gen", "the authors of gen", gen.__version__, "the authors of gen, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_parts.extension"]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

autodoc_default_options = {"member-order": "bysource", "no-value": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # fields are explained once, by their class
napoleon_use_rtype = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
suppress_warnings = ["ref.python"]  # a type's short name may be that of two classes

html_theme = "furo"
html_title = "gen"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
