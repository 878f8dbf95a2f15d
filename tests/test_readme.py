"""README.md and docs/: Python blocks run, commands parse, links lead somewhere, tables are up to date."""

import importlib
import importlib.util
import itertools
import pkgutil
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from PIL import Image
from safetensors.torch import save_file

import gen
from gen.cli import _main as cli
from gen.config.errors import UserError
from gen.config.spec import build, find, names, override
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.training.recipes.captioned_digits import captioned_digits
from gen.training.recipes.digits import digits
from gen.training.recipes.lists import lists
from tests.ode import measured_order
from tests.pipelines.tiny import with_text_encoder
from tests.test_every import mixture
from tests.test_words import words

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
NAMES = {page: str(page.relative_to(ROOT)) for page in PAGES}
SMALL = {"model.width": 16, "model.depth": 1, "model.heads": 2}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def files(page):
    """Return the blocks that a page says to put into a file, by the file's name."""
    return dict(re.findall(r"Put this into `([^`]+)`:\n\n```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))


def commands(page, program):
    """Yield the lines of shell blocks and the inline code that call a program, without comments."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)]:
        words = shlex.split(line, comments=True)
        if words[:1] == [program] and len(words) > 1:
            yield words[1:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the runs that the pages speak of: small, and hardly trained, but far from where they began."""
    folder = tmp_path_factory.mktemp("pages")
    often = {"sample_every": 0, "validate_every": 0, "save_every": 0, "steps": 4, "batch_size": 8}
    often |= {"optim.lr": 0.05, "schedule.warmup": 0, "ema": []}
    gen.train(override(digits(), SMALL | often), folder / "runs/teacher", quiet=True)
    gen.train(override(lists(), SMALL | often), folder / "runs/lists", quiet=True)
    captions = {"model.text_width": 8, "model.text_depth": 1}
    gen.train(override(captioned_digits(), SMALL | captions | often), folder / "runs/captions", quiet=True)
    for name in ("cat", "dog", "flower"):
        (folder / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "photos" / name / "0.png")
    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    (folder / "latents").mkdir()
    zeros = torch.zeros(4, 4, 8, 8)
    latents = {"latents": zeros, "latents_flip": zeros.clone(), "labels": torch.arange(4) % 2}
    save_file(latents, folder / "latents" / "latents-00000.safetensors")
    return folder


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (example,) = blocks(README, "python")
    assert len(example.strip().splitlines()) <= 14
    monkeypatch.chdir(tmp_path)
    code, changed = re.subn(r'"steps": 1600', '"steps": 3', example)
    code, shorter = re.subn(r"changes=one_step\(\)", 'changes={**one_step(), "steps": 2, "objective.pairs": 40}', code)
    assert changed == shorter == 1
    (tmp_path / "example.py").write_text(code)
    runpy.run_path(str(tmp_path / "example.py"))
    assert (tmp_path / "runs/digits.png").exists() and (tmp_path / "runs/leaderboard.html").exists()
    assert "30.0 network evaluations per sample" in capsys.readouterr().out


@pytest.fixture
def at_home(request, trained, monkeypatch):
    """The folder of runs as the current one, with the files that a page puts there, which are forgotten afterwards."""
    page, names = request.getfixturevalue("page"), []
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(str(trained))
    for name, text in files(page).items():
        (trained / Path(name).name).write_text(text)
        names.append(Path(name).stem)
    (trained / "model").mkdir(exist_ok=True)  # which the pages name, of someone else's
    ids = {"<|mask|>": 0, "<|im_end|>": 1, "a": 2}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="a")).save(str(trained / "model/tokenizer.json"))
    if request.getfixturevalue("page").stem == "coming-from-diffusers" and not (trained / "sd15").exists():
        with_text_encoder("sd15").save_pretrained(trained / "sd15")
        (trained / "prompts.txt").write_text("a red fox\na blue bird\n")
        (trained / "photos.csv").write_text("file,caption\nmy-fox/a.png,a red fox\n")
        (trained / "my-fox").mkdir()
        Image.new("RGB", (16, 16)).save(trained / "my-fox/a.png")
    yield trained
    for name in names:
        sys.modules.pop(name, None)
        (trained / f"{name}.py").unlink()


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page, "python")], ids=NAMES.get)
def test_python_of_a_page_runs(page, at_home):
    code = "\n".join(block for block in blocks(page, "python") if block not in files(page).values())
    code = re.sub(r'("(?:steps|n)": )\d{2,}', r"\g<1>2", code)
    with torch.enable_grad():  # a page may switch gradients off
        exec(compile(code, str(page), "exec"), {"__name__": page.stem})


PLACED = re.compile(r"Folder: \[(\S+)/\]|Put this into `(\S+)`:\n\n```python\n(.*?)```", re.DOTALL)


def plug_ins():
    """Return the example files of the pages about plug-ins, with the folder that each page names before it."""
    cases = []
    for page in PAGES:
        folder = None
        for named, name, code in PLACED.findall(page.read_text(encoding="utf-8")):
            folder = named or folder
            if name and folder:
                cases.append(pytest.param(folder, Path(name).stem, code, id=f"{page.stem}-{name}"))
    return cases


@pytest.mark.parametrize(("folder", "name", "code"), plug_ins())
def test_an_example_is_a_plug_in_of_its_folder_too(folder, name, code, tmp_path):
    """Its file's name is its name there, and the first of its `__all__` what it means."""
    linked = {"samplers": "gen.samplers", "distill": "gen.distillers", "models": "gen.models", "eval": "gen.eval"}
    top, *rest = folder.split("/")
    package = importlib.import_module(".".join([linked.get(top, top), *rest]))
    dotted = package.__name__.removeprefix("gen.")
    (tmp_path / f"{name}.py").write_text(code)
    package.__path__.append(str(tmp_path))
    try:
        assert name in names(dotted)
        plugin = find(name, dotted)
        assert plugin.__module__ == f"{package.__name__}.{name}" and plugin.__doc__
    finally:
        package.__path__.remove(str(tmp_path))
        sys.modules.pop(f"{package.__name__}.{name}", None)


def test_the_solver_of_the_page_is_one(tmp_path, monkeypatch):
    (tmp_path / "half.py").write_text(files(DOCS / "plugins/solver.md")["my_solver.py"])
    monkeypatch.syspath_prepend(str(tmp_path))
    solver = build("samplers.solvers", "half:Half")
    world, noise = mixture(Flow()), torch.randn(64, 2, dtype=torch.float64)
    x = integrate(world, noise, [1.0, 0.9, 0.8], solver)
    assert measured_order(solver, world, x, 0.8, 0.1) == pytest.approx(2, abs=0.15)
    assert integrate(world, x, [0.8, 0.4, 0.0], solver).isfinite().all()
    sys.modules.pop("half")


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_commands_parse(page, at_home):
    for typed in commands(page, "gen"):
        if typed == ["--help"]:
            continue
        name, *rest = typed
        assert name in cli.verb_files(), f"gen {shlex.join(typed)}: there is no command {name!r}"
        verb = importlib.import_module(f"gen.cli.{name.replace('-', '_')}")
        try:
            if name == "list":
                assert cli.main(["list", *rest]) == 0
            elif rest:  # a command's bare name in the prose is no call
                cli._parse(verb, cli._parser(name, verb), rest)
        except UserError as error:
            raise AssertionError(f"gen {shlex.join(typed)}: {error}") from error
    for script, *options in commands(page, "python"):
        if script == "-m":
            continue
        text = (ROOT / script).read_text(encoding="utf-8")
        for option in options:
            assert not option.startswith("--") or f'"{option}"' in text, f"{script} has no option {option}"
    for target, *_ in commands(page, "make"):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


BLOCK = re.compile(r"(?:<!-- not run: ([^\n]+) -->\n)?^```(\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LESS = {  # of what the blocks of shells ask for, so that a command takes seconds
    r"(--steps|-n|--objective\.pairs) \d{2,}": r"\1 20",
    r"^(train|distill) .*": r"\g<0> --steps 2 --batch_size 8 --sample_every 0 --validate_every 0 --quiet",
    r"^evaluate (?!.*-n ).*": r"\g<0> -n 20",
}


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_every_block_is_run_or_says_why_not(page):
    """Python runs; shells' blocks run in the slow test below, unless a comment before them says why not."""
    for reason, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        start = f"{page.name}: the block {code.splitlines()[0]!r}"
        if language == "python":
            assert not reason, f"{start} runs: it needs no reason why not"
        elif language != "{toctree}":
            runs = language == "sh" and all(line.startswith("gen ") for line in code.splitlines())
            assert runs or len(reason.split()) > 2, f"{start} needs <!-- not run: reason --> before it"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")], ids=NAMES.get)
def test_shell_blocks_run(page, at_home):
    for reason, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in code.splitlines() if language == "sh" and not reason else []:
            typed = shlex.join(shlex.split(line, comments=True)[1:])
            for given, less in LESS.items():
                typed = re.sub(given, less, typed)
            assert cli.main(shlex.split(typed)) == 0, typed


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_links_lead_somewhere(page):
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        path = page.parent / target
        if "reference" in path.parts[:-1] or re.match(r"\w+:", target):
            continue  # made by the site, and checked there; an address
        assert path.exists(), f"{page.name}: {target} is not there"
        if re.fullmatch(r"`\w+`", text) and path.suffix == ".py":
            name = text.strip("`")
            there = re.search(rf"^(class|def) {name}\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert there, f"{page.name}: {target} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_words(page):
    assert list(words(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_names_in_the_prose_are_there(page):
    for dotted in re.findall(r"`(gen(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        pkgutil.resolve_name(dotted)


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_headings_go_down_one_level_at_a_time(page):
    """The site takes a jump for a mistake, and is built by a slow test only."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_every_page_is_in_the_navigation_of_the_site():
    """The lists of pages that Sphinx draws beside every page; what it makes itself is in reference/."""
    listed, found = {"index"}, ["index"]
    for name in found:
        page = DOCS / f"{name}.md"
        for tree in blocks(page, "{toctree}"):
            for line in filter(None, (line for line in tree.splitlines() if not line.startswith(":"))):
                target = (re.search(r"<(.+)>", line) or re.search(r"(.+)", line))[1]
                entry = str((page.parent / target).resolve().relative_to(DOCS))
                if not entry.startswith("reference/"):
                    assert entry not in listed, f"{page.name} lists {entry}, which is listed already"
                    listed.add(entry)
                    found.append(entry)
    assert listed == {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if DOCS in page.parents}


def test_tables_are_those_of_the_results():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts/tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.main(["--check"]) == 0, "python scripts/tables.py makes the tables of docs/ anew"
