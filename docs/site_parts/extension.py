"""An extension of Sphinx: formulas as MathML, docstrings and links to sources as this project writes them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

from site_parts import docstrings, reference

ROOT = Path(__file__).resolve().parents[2]


def setup(app):
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("builder-inited", write_reference)
    app.connect("source-read", link_sources)
    app.connect("autodoc-process-docstring", docstrings.process, priority=400)  # before napoleon
    return {"version": "1", "parallel_read_safe": True}


def inline_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator, node):
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def write_reference(app):
    """Write the pages of the reference, one for each package, where they are not there as they should be."""
    folder = Path(app.srcdir) / "reference"
    pages = reference.pages()
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def link_sources(app, docname, source):
    """Turn links to modules and folders of the repository into links to the reference; others stay downloads."""
    here = posixpath.dirname(docname)

    def link(match):
        path = posixpath.normpath(posixpath.join("docs", here, match[2]))
        if path == "README.md":
            target = "index.html"
        elif path == "gen/cli" or path.startswith("gen/cli/"):
            target = "reference/commands.html"
        elif module := reference.module_of(path):
            page = module if (ROOT / path).is_dir() else reference.package_of(module)
            target = f"reference/{page}.html" + ("" if page == module else f"#module-{module}")
        elif (ROOT / path).is_dir():
            return match[1]  # no page of the site, nor a file to be read
        else:
            return match[0]
        return f'<a class="reference internal" href="{posixpath.relpath(target, here or ".")}">{match[1]}</a>'

    if not docname.startswith("reference/"):
        source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)", link, source[0])
