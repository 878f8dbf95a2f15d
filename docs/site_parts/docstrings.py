"""From this project's docstrings, plain text with `code` and indented examples, to what napoleon reads."""

from __future__ import annotations

import re

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):$")


def process(app, what, name, obj, options, lines):
    """Rewrite a docstring's lines in place, as autodoc's event asks for; those of nn.Module's methods are torch's."""
    inherited = lines[:1] == ["Define the computation performed at every call."]
    lines[:] = [] if inherited else converted(lines)


def converted(lines):
    """Return the lines in reStructuredText: indented text is literal, or a list where it follows a colon directly.

    Sections of arguments are left to napoleon.
    """
    done, state, before = [], "text", ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line and not indent:
            state = "section" if SECTION.match(line) else "text"
        elif line and state == "text":
            state, base = ("list" if before.strip() else "literal"), indent
            done += ["::", ""] if state == "literal" else [""]
        if state == "literal" or not line:
            done.append(line)
        elif state == "list":
            done.append((f"  {line.strip()}" if indent > base else f"- {line.strip()}") if line else line)
        else:
            done.append(line)
        before = line
    return escaped(done)


def escaped(lines):
    """Escape what reStructuredText would read as markup outside literal blocks; `code` becomes ``code``."""
    out, literal = [], False
    for line in lines:
        if line == "::":
            literal = True
        elif line and not line.startswith(" "):
            literal = False
        out.append(line if literal else "".join(_escape(part) for part in re.split(r"(``?[^`]+``?)", line)))
    return out


def _escape(part):
    if part.startswith("``"):
        return part
    if part.startswith("`") and part.endswith("`") and len(part) > 1:
        return f"`{part}`"
    return re.sub(r"(?<!\\)([*|`\\]|_(?!\w))", r"\\\1", part)
