"""The field's words and docstrings that say what arguments mean, held on to by reading the source.

`python tests/test_words.py FOLDER ...` prints what a folder's files violate, one `file:line: reason` a line.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("gen", "samplers", "distill", "models", "kernels", "eval", "scripts")

# Identifiers that name something by a riddle, and the field's word with the reason for it.
RETIRED = {
    "foresee": "precompute_modulations: the verb says what is computed before the loop",
    "rehearse": "evaluation_times: it returns the times that a solver will evaluate",
    "Foreseen": "PrecomputedDenoiser: a denoiser whose modulations are precomputed",
    "foreseen": "precomputed: as in precompute_modulations",
    "Located": "ContextualTap: a tap that must know step, stage and branch",
    "Placed": "BoundTap: a tap bound to one evaluation's context",
    "net_time": "t_to_network: the time value passed to the network",
    "t_of_lam": "t_from_lambda: the inverse of lam(t)",
    "land": "interpolate: nothing lands",
    "Evaluate": "DenoiseFn: a function type is named as one",
    "Places": "StepBatchSampler: torch's word for what yields the indices of a batch",
    "Late": "TruncatedTimes: times truncated to [t_min, t1]",
    "Pace": "CurriculumState: state, not speed",
    "order_uses_samples": "order_depends_on_samples: the order is no user",
    "Verdict": "StopDecision: what a stop rule returns",
    "Choice": "CommitDecision: what a decoding policy returns",
    "Now": "KvStep: a KV plan's view of one step",
    "waits": "may_skip: the policy may commit nothing at a step",
    "owed": "mask_budget: a number of masked positions",
    "Sight": "AttentionContext: mask, positions and cached keys of an attention layer",
    "unfit": "incompatible_reason: it returns a reason or None",
    "Around": "Wrapper: a network that wraps another",
    "Ported": "Reparameterised: a network under another parameterisation",
    "t_one": "time_convention: how a published network counts time",
    "_adopt": "load_inner_only: it loads the wrapped network's weights",
    "Where": "BenchContext: device, dtype and threads of a benchmark",
    "Ceiling": "MachinePeak: as in the roofline model",
    "yardstick": "baseline: what a benchmark compares with",
    "Absent": "Unavailable: a peer that is not installed",
    "stir": "add_churn: Karras et al. call it churn",
    "Anchored": "fixed_noise: the noise is fixed over the loop",
    "Walk": "GuidedDenoiser: it denoises and does not walk",
    "towards": "extrapolate: guidance extrapolates from one prediction through another",
    "c_alone": "scale_of_cond: a scale",
    "u_alone": "scale_of_uncond: a scale",
    "taught": "guided_teacher: the teacher's prediction under guidance",
    "beside_clean": "noisy_and_clean: what is concatenated",
    "Earlier": "a noun that says which state is meant",
    "Certain": "a noun that says what is certain",
}

# Words of docstrings and comments, as regular expressions, and what to write instead.
RETIRED_WORDS = {
    r"(?<!\bin )(?<!\btake )(?<!\btakes )(?<!\bfirst )(?<!decimal )\bplaces?\b": "position, slot or index",
    r"\bwalks?\b": "loop or trajectory",
    r"\btold\b(?! apart)": "given, passed or set to",
    r"\btaught\b": "trained",
    r"\bowed\b": "left to commit, due",
    r"\b[Ww]hat (?:an?|the|this|every|each) \w+ (?:sees|is asked|needs to know)\b": "inputs or state of",
}

RELATIVE = {"what", "which", "whether", "where", "when", "how", "so", "that", "who", "whose", "why", "as", "if"}
NO_VERB = {"a", "an", "the", "this", "these", "those", "it", "they", "one", "each", "every", "all", "both", "same"}
EXEMPT = {"self", "cls"}
ENTRY = re.compile(r"^(?:`?\*{0,2}(\w+)`?)((?:, *`?\*{0,2}\w+`?)*)(?: \([^)]*\))?:(?: |$)")


def sources():
    """Return all Python files of the folders by their path under the root, not through the links in gen/."""
    return [
        path.relative_to(ROOT)
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "__pycache__" not in path.parts and not (ROOT / "gen" / path.relative_to(ROOT).parts[1]).is_symlink()
    ]


def exported(tree):
    """Return the strings in a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {inner.value for inner in ast.walk(node.value) if isinstance(inner, ast.Constant)}
    return set()


def section(doc, title):
    """Return the names that a Google-style section of a docstring explains; None without the section."""
    lines = doc.splitlines()
    if title not in lines:
        return None
    names = []
    for line in lines[lines.index(title) + 1 :]:
        if line and not line.startswith("    "):
            break
        if line.startswith("    ") and not line.startswith("     ") and (entry := ENTRY.match(line.strip())):
            names += re.findall(r"\w+", entry[1] + entry[2])
    return names


def check_section(doc, title, wanted, closed=True):
    """Yield what a section lacks and, if `closed`, what it explains that is not there."""
    there = section(doc, title)
    if there is None:
        if wanted:
            yield f"no `{title}` section for {', '.join(wanted)}"
        return
    if missing := [name for name in wanted if name not in there]:
        yield f"`{title}` does not explain {', '.join(missing)}"
    if closed and (stale := [name for name in there if name not in wanted and not name.startswith("_")]):
        yield f"`{title}` explains {', '.join(stale)}, which is not there"


def arguments(function):
    """Return the names of a function's public arguments."""
    given = function.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    return [a.arg for a in every if a is not None and a.arg not in EXEMPT and not a.arg.startswith("_")]


def fields(dataclass):
    """Return the names of the public fields that a dataclass declares itself."""
    return [
        node.target.id
        for node in dataclass.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(node.annotation)
    ]


def check_summary(doc, verb):
    """Yield what is wrong with a docstring's first line, which starts with an imperative if `verb`."""
    if not doc:
        yield "no docstring"
        return
    summary, _, rest = doc.partition("\n")
    first = re.match(r"[\w'-]*", summary)[0]
    if not summary.endswith("."):
        yield f"summary is not one line that ends with a full stop: {summary!r}"
    if rest and not rest.startswith("\n"):
        yield "no empty line after the summary"
    if first.lower() in RELATIVE:
        yield f"summary starts with {first!r}, a relative clause: {summary!r}"
    elif verb and (not first.istitle() or first.lower() in NO_VERB or re.search(r"[^s]s$", first)):
        yield f"summary starts with {first!r}, no imperative verb: {summary!r}"


def is_property(function):
    """Return whether a function is read like an attribute."""
    return any(ast.unparse(d).split(".")[-1] in ("property", "cached_property") for d in function.decorator_list)


def is_backend(path):
    """Return whether a file is a kernel's back end: none that its op's package offers, and not the reference."""
    if path.parts[0] != "kernels" or len(path.parts) != 3 or path.parts[1] == "lib" or path.stem == "__init__":
        return False
    offered = (ROOT / path.parent / "__init__.py").read_text(encoding="utf-8")
    return path.stem != "reference" and f".{path.stem} import" not in offered


def check_docstrings(path, tree):
    """Yield (line, reason) for the docstrings of what `__all__` names and of the methods of Protocols."""
    backend = is_backend(path)
    verb_file = path.parent == Path("gen/cli")  # its functions are a contract, written down once in the package
    public, described = exported(tree) - ({"add_arguments", "run", "settings"} if verb_file else set()), []
    for node in tree.body:
        if getattr(node, "name", None) not in public:
            continue
        described.append((node, node.name))
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
            described += [(m, f"{node.name}.{m.name}") for m in node.body if isinstance(m, ast.FunctionDef)]
    for node, name in described:
        doc = ast.get_docstring(node) or ""
        function = isinstance(node, ast.FunctionDef)
        problems = list(check_summary(doc, function and not is_property(node)))
        if doc and not backend and function:
            problems += check_section(doc, "Args:", arguments(node))
        elif doc and not backend and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            problems += check_section(doc, "Attributes:", fields(node), closed=not node.bases)
        yield from ((node.lineno, f"{name}: {problem}") for problem in problems)


ANY_IDENTIFIER = re.compile(r"\b(?:" + "|".join(RETIRED) + r")\b")
ANY_WORD = re.compile("|".join(RETIRED_WORDS))


def check_words(text, tree):
    """Yield (line, reason) for retired identifiers in code and retired words in docstrings and comments."""
    if ANY_IDENTIFIER.search(text) or re.search(r"#.*?(?:" + ANY_WORD.pattern + ")", text):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in RETIRED:
                yield token.start[0], f"identifier {token.string!r} -> {RETIRED[token.string]}"
            elif token.type == tokenize.COMMENT:
                yield from ((token.start[0], reason) for reason in words(token.string))
    if ANY_WORD.search(text):
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
                yield from ((node.body[0].lineno, reason) for reason in words(doc))


def words(text):
    """Yield the reasons why words of a docstring or comment should be others."""
    for pattern, better in RETIRED_WORDS.items():
        for match in re.finditer(pattern, text):
            yield f"{' '.join(text[max(match.start() - 20, 0) : match.end() + 10].split())!r}: write {better}"


def violations(path):
    """Return the lines `file:line: reason` of one file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    problems = list(check_words(text, tree))
    if path.parts[0] != "scripts":
        problems += [(1, f"module: {reason}") for reason in check_summary(ast.get_docstring(tree) or "", verb=False)]
        problems += check_docstrings(path, tree)
    return [f"{path}:{line}: {reason}" for line, reason in sorted(problems)]


def under(path, entry):
    """Return whether a file is the entry, or lies in it at any depth."""
    return path == Path(entry) or Path(entry) in path.parents


SOURCES = sources()


@pytest.mark.parametrize("folder", FOLDERS)
def test_words_and_docstrings(folder):
    found = [line for path in SOURCES if under(path, folder) for line in violations(path)]
    assert not found, "\n".join(found)


GOOD = '''"""One rule."""

__all__ = ["step"]


def step(x, t, *rest, noise=None):
    """Advance x by one step.

    Args:
        x: sample [B, ...].
        t, *rest: times, 0-d;
            the first is the current one.
        noise: None for a solver that draws none.
    """
'''


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("One rule.", "One rule", "full stop"),
        ("One rule.", "What a solver sees.", "relative clause"),
        ("Advance x", "Advances x", "no imperative verb"),
        ("Advance x", "The x", "no imperative verb"),
        ("Advance x by one step.", "Advance x\n    by one step.", "one line"),
        ("        x: ", "        y: ", "does not explain x"),
        ("        x: ", "        y, x: ", "explains y"),
        ("Args:", "Arguments:", "no `Args:` section"),
        ("sample [", "place [", "position, slot or index"),
        ("noise", "owed", "mask_budget"),
        ("noise", "noise", None),
    ],
)
def test_the_rules_find(old, new, reason):
    text = GOOD.replace(old, new)
    tree = ast.parse(text)
    found = [problem for _, problem in [*check_words(text, tree), *check_docstrings(Path("gen/rule.py"), tree)]]
    found += check_summary(ast.get_docstring(tree), verb=False)
    assert any(reason in problem for problem in found) if reason else not found, found


if __name__ == "__main__":
    for entry in sys.argv[1:] or FOLDERS:
        for path in SOURCES:
            if under(path, entry.rstrip("/")):
                for line in violations(path):
                    print(line)
