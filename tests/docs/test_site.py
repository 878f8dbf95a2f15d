"""The site is built without a warning, hangs together, and needs no network."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The links, the resources and the anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.resources, self.anchors = set(), set(), {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag in ("img", "script", "iframe") and given.get("src"):
            self.resources.add(given["src"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.resources.add(given["href"])


def built(out):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr[-8000:]
    return out


@pytest.mark.slow
def test_every_page_is_reached_every_link_leads_somewhere_and_formulas_are_drawn(tmp_path):
    site = built(tmp_path)
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    reached, found = {site / "index.html"}, [site / "index.html"]
    for path in found:
        for link in pages[path].links | pages[path].resources:
            where, anchor = urldefrag(link)
            where = where.partition("?")[0]
            if urlsplit(link).scheme:
                assert link in pages[path].links, f"{path.name} needs the network: {link}"
                continue
            target = (path.parent / unquote(where)).resolve() if where else path
            assert target.exists(), f"{path.relative_to(site)}: {link} is not there"
            if target in pages:
                assert unquote(anchor) in pages[target].anchors, f"{path.relative_to(site)}: {link} has no such anchor"
                if target not in reached:
                    reached.add(target)
                    found.append(target)
    made_by_the_theme = {site / f"{name}.html" for name in ("search", "genindex", "py-modindex")}
    assert set(pages) - made_by_the_theme == reached - made_by_the_theme
    # formulas and fields
    text = (site / "reference/gen.samplers.solvers.html").read_text(encoding="utf-8")
    assert 'id="gen.samplers.solvers.heun.Heun"' in text and "Attributes" in text
    assert not re.search(r"\$\$|:param|:ivar|\\\\frac", text)
