"""The command line: verbs, overrides, messages and exit codes."""

from __future__ import annotations

import inspect
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import gen.cli
from gen.cli import main, verbs
from gen.cli.doctor import _backend
from gen.cli.list import FOLDERS
from gen.samplers.solvers.heun import Heun
from gen.training.trainer import train
from tests.gen.tiny import tiny

ROOT = Path(__file__).resolve().parents[3]

TOY = '''"""A toy verb.

It says what it was given.
"""

from dataclasses import dataclass
from typing import Any

import signal

from gen.config.errors import MissingDependency, NonFinite, UserError
from gen.training.signals import Interrupted
from gen.diffusion.path import Flow
from gen.config.spec import part


@dataclass(frozen=True)
class Toy:
    steps: int = 10
    path: Any = part("diffusion.path", default=Flow())
    note: str = "a"


def add_arguments(parser):
    parser.add_argument("recipe")
    parser.add_argument("--output-dir", default="runs/x", help="where (default: runs/x)")
    parser.add_argument("-n", type=int, default=1)
    parser.add_argument("--fast", action="store_true")


def settings(args):
    if args.recipe == "unknown":
        raise UserError("unknown recipe 'unknown'")
    return Toy()


def run(args):
    errors = {
        "user": UserError("steps = -1; it must be positive"),
        "missing": MissingDependency("lpips is missing: pip install lpips"),
        "nan": NonFinite("loss is NaN at step 3"),
        "os": FileNotFoundError(2, "No such file or directory", "runs/none"),
        "bug": KeyError("a\\nb"),
        "stop": Interrupted("stopped at step 3; saved, run this again to go on: gen train toy", signal.SIGTERM),
        "ctrl-c": KeyboardInterrupt(),
        "memory": MemoryError("CUDA out of memory. Tried to allocate 12 GiB. GPU 0 has"),
        "import": ModuleNotFoundError("No module named 'xformers'", name="xformers"),
    }
    if args.recipe in errors:
        raise errors[args.recipe]
    print(args.recipe, args.output_dir, args.n, args.fast, args.settings, args.overrides)
    return 7 if args.recipe == "seven" else 0
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A verb `toy`, in a folder of its own."""
    (tmp_path / "toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.setattr(gen.cli, "__path__", [*gen.cli.__path__, str(tmp_path)])
    yield "toy"
    sys.modules.pop("gen.cli.toy", None)
    vars(gen.cli).pop("toy", None)


def call(capsys, *words):
    """Exit code, stdout, stderr."""
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_verbs_are_the_files_of_the_folder():
    assert {"list", "doctor"} <= set(verbs())
    assert verbs()["list"].startswith("List the plug-ins")
    assert not any(verb.startswith("_") for verb in verbs())


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_overview_names_every_verb(capsys, words):
    code, out, err = call(capsys, *words)
    assert (code, err) == (0, "")
    assert all(f"  {verb} " in out for verb in verbs())


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"gen {gen.__version__}\n", "")


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_the_help_of_every_verb_explains_all_its_options(capsys, verb):
    code, out, err = call(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: gen {verb}")
    assert verbs()[verb] in out


def test_help_is_fast_and_loads_no_torch():
    """In a process of its own, as people start it; the bound is 0.5 s of a processor, the best of three here."""
    code = "import sys; from gen.cli import main; main(sys.argv[1:]); print(*({'torch', 'numpy'} & set(sys.modules)))"
    best, used = 1e9, lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    for words in ([], ["list", "--help"], ["train", "--help"]):
        began = used()
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True
        )
        best = min(best, used() - began)
        assert done.stdout.endswith("\n\n")
    assert best < 0.5


def test_a_list_and_a_mistyped_name_load_no_torch():
    lines = ["list", "list --json", "list solvres", "train digitz", "distill reflw --teacher runs/none", "trian"]
    code = "import sys; from gen.cli import main\nfor line in sys.argv[1:]: main(line.split())\n"
    code += "print('loaded', *({'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nloaded\n")
    assert [re.search(r"Did you mean '(.*?)'", line)[1] for line in done.stderr.splitlines()[1:]] == [
        "digits", "reflow", "train",
    ]  # fmt: skip


def test_a_wrong_verb_names_the_nearest(capsys):
    code, out, err = call(capsys, "lits")
    assert (code, out) == (2, "")
    assert err.startswith("gen: unknown command 'lits'. Did you mean 'list'?")
    assert err.count("\n") == 1


def test_options_settings_and_overrides(capsys, toy):
    code, out, _ = call(
        capsys, toy, "r", "--steps", "20", "--output_dir=o", "-n", "3", "--path=edm", "--path.sigma-max", "3", "--fast"
    )
    assert code == 0
    assert out == (
        "r o 3 True Toy(steps=20, path=EDM(sigma_max=3.0), note='a') "
        "{'steps': '20', 'path': 'edm', 'path.sigma_max': '3'}\n"
    )


def test_overrides_may_stand_before_the_arguments(capsys, toy):
    code, out, _ = call(capsys, toy, "--steps", "20", "r")
    assert code == 0
    assert "Toy(steps=20" in out


def test_a_negative_number_is_a_value(capsys, toy):
    assert "Toy(steps=-1" in call(capsys, toy, "r", "--steps", "-1")[1]


def test_the_exit_code_of_a_verb_is_passed_on(capsys, toy):
    assert call(capsys, toy, "seven")[0] == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r", "--stps", "3"], "unknown key 'stps' of Toy. Did you mean 'steps'?"),
        (["r", "--steps", "many"], "Toy.steps: got 'many', expected a whole number"),
        (["r", "--path", "emd"], "unknown name 'emd' in diffusion.path. Did you mean 'edm'?"),
        (["r", "--path.sigma_max", "3"], "unknown key 'sigma_max' of Flow."),
        (["r", "--steps"], "--steps needs a value"),
        (["r", "--steps", "--fast"], "--steps needs a value"),
        (["r", "--output-dri", "x"], "--output-dri? Is it --output-dir? unknown key"),
        (["r", "-n", "x"], "argument -n: got 'x', expected a whole number"),
        ([], "the following arguments are required: recipe. See: gen toy --help"),
        (["unknown"], "unknown recipe 'unknown'"),
        (["user"], "steps = -1; it must be positive"),
        (["os"], "No such file or directory: runs/none"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(capsys, toy, words, message):
    code, out, err = call(capsys, toy, *words)
    assert (code, out) == (2, "")
    assert err.startswith("gen: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "code", "message"),
    [
        ("missing", 3, "lpips is missing: pip install lpips"),
        ("import", 3, "the package 'xformers' is not installed"),
        ("nan", 4, "loss is NaN at step 3"),
        ("stop", 143, "stopped at step 3; saved, run this again to go on: gen train toy"),
        ("ctrl-c", 130, "interrupted"),
        ("memory", 1, "out of memory: 12 GiB more were asked for. When training, a smaller --micro-batch-size"),
        ("bug", 1, "KeyError: "),
    ],
)
def test_other_ends_have_their_own_exit_codes(capsys, toy, recipe, code, message):
    got, _, err = call(capsys, toy, recipe)
    assert got == code
    assert message in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback_anywhere(capsys, toy):
    for words in (["--debug", toy, "bug"], [toy, "--debug", "bug"], [toy, "bug", "--debug"]):
        code, _, err = call(capsys, *words)
        assert code == 1
        assert "Traceback (most recent call last)" in err
        assert "KeyError" in err


def test_print_config_is_json_that_builds_the_same(capsys, toy):
    code, out, _ = call(capsys, toy, "bug", "--steps", "3", "--print-config")  # nothing is run
    assert code == 0
    assert json.loads(out) == {"steps": 3, "path": {"name": "flow"}, "note": "a"}


def test_help_after_the_recipe_lists_every_key_with_its_value(capsys, toy):
    code, out, _ = call(capsys, toy, "r", "--path", "edm", "--help")
    assert code == 0
    assert [line.split() for line in out.splitlines()[-4:]] == [
        ["--steps", "10"],
        ["--path", "edm"],
        ["--path.sigma_max", "80.0"],
        ["--note", "a"],
    ]
    code, out, _ = call(capsys, toy, "--help")
    assert code == 0
    assert "give all arguments before --help to list the keys" in out
    for words, said in ((["train", "own"], "own: Train .* From 64 pixels on"), (["train", "nothing"], "Allowed: ")):
        code, out, _ = call(capsys, *words, "--help")
        assert code == 0 and re.search(said, " ".join(out.split()))


def test_a_verb_without_settings_refuses_unknown_options(capsys):
    code, _, err = call(capsys, "list", "--jsno")
    assert code == 2
    assert "unknown option '--jsno' of gen list. Did you mean '--json'?" in err


def test_threads_wait_passively(capsys, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    call(capsys, "--version")
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    call(capsys, "--version")
    assert os.environ["OMP_WAIT_POLICY"] == "active"


def test_a_closed_pipe_is_no_error():
    """As in `gen list | head -n 1`, where the reader leaves before all is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(ROOT / "scripts" / "list.py"), "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", [[str(ROOT / "scripts" / "list.py")], ["-m", "gen", "list"]], ids=["script", "-m"])
def test_a_verb_runs_as_a_script_and_as_a_module(tmp_path, command):
    environ = {**os.environ, "PYTHONPATH": str(ROOT) if "-m" in command else ""}
    words = [sys.executable, *command, "path", "--json"]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert "flow" in json.loads(done.stdout)["diffusion.path"]


# list


def test_list_shows_every_plug_in_with_a_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(capsys, "list", "solvers", "path")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "samplers.solvers"
    assert any(re.match(r"  heun +An Euler step", line) for line in lines)
    assert any(re.match(r"  flow +Rectified flow", line) for line in lines)
    assert max(map(len, lines)) <= 80


def test_list_knows_every_folder(capsys):
    code, out, _ = call(capsys, "list", "--json")
    assert code == 0
    table = json.loads(out)
    assert tuple(table) == FOLDERS
    assert all(line for lines in table.values() for line in lines.values())


@pytest.mark.parametrize("given", ["samplers/solvers", "samplers.solvers", "solvers", "solvers/"])
def test_list_takes_a_folder_by_any_of_its_names(capsys, given):
    assert call(capsys, "list", given)[1].startswith("samplers.solvers\n")


def test_list_shows_all_that_has_a_name(capsys):
    heads = [line for line in call(capsys, "list", "text")[1].splitlines() if line[:1].strip()]
    assert heads == ["models.interop.text", "training.recipes.text", "data.text", "models.text"]


@pytest.mark.parametrize("given", ["heun", "solvers/heun", "samplers.solvers.heun"])
def test_list_explains_one_plug_in_by_its_fields(capsys, monkeypatch, given):
    monkeypatch.setenv("COLUMNS", "40")
    code, out, _ = call(capsys, "list", given)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "samplers.solvers.heun"
    assert lines[1] == f"  {inspect.getdoc(Heun).splitlines()[0]}"  # whole, on a narrow terminal too
    assert lines[-5:] == [
        "  Fields:",
        "      churn: float = 0.0",
        "      s_min: float = 0.0",
        "      s_max: float | None = None",
        "      s_noise: float = 1.0",
    ]


def test_list_explains_parts_required_fields_and_every_owner_of_a_name(capsys):
    assert "      of: a name or spec of data\n" in call(capsys, "list", "answers")[1]
    assert call(capsys, "list", "training.recipes.digits")[0] == 0
    both = json.loads(call(capsys, "list", "searched", "--json")[1])
    assert {folder: list(texts) for folder, texts in both.items()} == {
        "samplers.grids": ["searched"],
        "samplers.caches": ["searched"],
    }


def test_list_of_nothing_names_the_nearest(capsys):
    code, _, err = call(capsys, "list", "solvrs")
    assert code == 2
    assert "there are no plug-ins in 'solvrs'" in err
    assert "Did you mean 'fbcache'? Folders: " in call(capsys, "list", "fbcach")[2]


def test_every_folder_of_plug_ins_is_listed():
    """A new folder of plug-ins belongs in gen.cli.list.FOLDERS, or here if its files are no choices of a spec."""
    wings = {"cli", "config", "diffusion", "text", "text.contracts", "training", "eval", "kernels", "samplers"}
    inside = {
        "cli.benches",
        "eval.arena",
        "eval.pages",
        "models.interop",
        "models.interop.pipelines",
        "models.layers",
        "models.layers.ssm",
        "samplers.interop",
        "training.papers",
    }
    there = set()
    for top in (ROOT / "gen").iterdir():
        for init in top.resolve().rglob("__init__.py"):
            folder = ".".join((top.name, *init.parent.relative_to(top.resolve()).parts))
            if not folder.endswith(".lib") and top.name != "kernels":
                there.add(folder)
    listed = {folder for folder in FOLDERS if (ROOT / "gen" / folder.replace(".", "/")).is_dir()}
    assert there - wings - inside == listed


# doctor


def doctor(*words, **environment):
    """A doctor in a process of its own: its probes leave traces in torch."""
    command = [sys.executable, str(ROOT / "scripts" / "doctor.py"), *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_doctor_examines_this_machine():
    done = doctor("--json")
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    devices = {"device cpu", "device cuda", "device mps"}
    assert {"python", "torch", "torchvision", *devices, "bf16", "threads", "memory", "disk"} <= set(findings)
    assert findings["attention sdpa math"]["status"] == "ok"
    assert findings["torch"]["status"] == "ok"
    for finding in findings.values():
        assert finding["status"] in ("ok", "none") or finding["fix"], finding
    assert done.returncode == int(any(finding["status"] == "fail" for finding in findings.values()))
    assert done.stderr == ""


@pytest.mark.slow
def test_doctor_recognises_a_torchvision_that_does_not_match(tmp_path):
    """The known failure: a wheel built for another torch raises while it registers its operators."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n", encoding="utf-8"
    )
    (tmp_path / "torchvision-0.0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.0.1\n", encoding="utf-8"
    )
    done = doctor("--json", PYTHONPATH=str(tmp_path))
    findings = {finding["subject"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["torchvision"]["status"] == "fail"
    assert "0.0.1 does not match torch" in findings["torchvision"]["detail"]
    assert "pip uninstall torchvision" in findings["torchvision"]["fix"]


def test_doctor_without_torch_says_so_and_goes_on(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing')\n", encoding="utf-8")
    done = doctor(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "libtorch.so is missing  ->  pip install" in done.stdout
    assert done.stdout.splitlines()[-1].split()[1] == "disk"
    assert done.stderr == ""


def test_an_attention_that_is_wrong_is_a_failure():
    assert _backend("attention broken", lambda q, k, v: v, "cpu").status == "fail"
    assert _backend("attention x", lambda q, k, v: 1 / 0, "cpu").status == "none"


def test_a_printed_config_can_be_trained(tmp_path, capsys):
    assert main(["train", "digits", "--steps", "7", "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "mine.json").write_text(printed)
    assert main(["train", str(tmp_path / "mine.json"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed and json.loads(printed)["steps"] == 7


def test_a_plug_in_of_ones_own_is_found_in_the_current_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "own_times.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Late:\n    low: float = 0.5\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", "--objective.times", "own_times:Late", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["objective"]["times"] == {"name": "own_times:Late", "low": 0.5}
    assert main(["list", "own_times:Late"]) == 0
    assert re.match(r"own_times:Late\n.*low: float = 0.5\n", capsys.readouterr().out, re.DOTALL)


def test_a_cache_is_asked_for_by_name_and_says_what_it_computed(tmp_path, capsys):
    train(tiny(steps=1), tmp_path / "run", quiet=True)
    words = ["sample", str(tmp_path / "run"), "-n", "4", "--steps", "8", "--cache", "taylorseer_lite"]
    assert main([*words, "--out", str(tmp_path / "a.png")]) == 0
    assert re.search(r"4 samples, 8 evaluations each, \d\d% of them in full", capsys.readouterr().out)


def test_list_cuts_no_line_and_names_presets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(capsys, "list", "models")
    assert code == 0
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    words = out.split()
    assert "DiT-B/2," in words
    code, out, _ = call(capsys, "list", "dit")
    assert code == 0
    assert "Presets, each a name of its own:\n      DiT-S/2, DiT-S/4" in out
