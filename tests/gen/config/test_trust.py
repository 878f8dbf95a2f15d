"""Names in files: loading runs no code that the user did not name in this call."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.config.trust import allowing, names_from
from gen.training.run import run_spec
from tests.gen.tiny import seal, tiny

EVIL = '''"""Whoever imports this, leaves a trace."""
import dataclasses, pathlib
pathlib.Path(__file__).with_name("ran").touch()
@dataclasses.dataclass(frozen=True)
class Evil:
    def __call__(self): ...
    def build(self): ...
    def open(self, split): ...
'''
NAME = "runs.model.evilmod:Evil"
WHERE = {  # keys of a run, and the value there; loading needs few of them
    "data": {"name": NAME},
    "data.tokenizer": {"name": "text", "tokenizer": {"name": NAME}},
    "data.of": {"name": "answers", "path": "x", "of": NAME},
    "model": {"name": NAME},
    "model as text": NAME,
    "model.inner": {"name": "pruned", "sites": [], "inner": {"name": NAME}},
    "objective": {"name": NAME},
    "objective.times": {"name": "denoise", "times": NAME},
    "objective.encoder": {"name": "repa", "encoder": {"name": NAME}},
    "objective.teacher_sampler": {"name": "reflow", "teacher_sampler": {"solver": NAME}},
    "path": {"name": NAME},
    "parameterisation": {"name": NAME},
    "optim": {"name": NAME},
    "schedule": {"name": NAME},
    "ema": [{"name": NAME}],
    "sampler.solver": {"solver": {"name": NAME}},
    "sampler.guide": {"guide": {"name": NAME}},
    "sampler.cache": {"cache": {"name": "custom", "policy": {"name": NAME}}},
    "sampler.policy": {"policy": NAME},
    "sampler.stopping_rules": {"stopping_rules": ["eos", NAME]},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    gen.train(tiny(steps=2, save_every=1), folder, quiet=True)
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A folder of work with a downloaded model in it, code and weights side by side."""
    shutil.copytree(trained, tmp_path / "runs/model")
    (tmp_path / "runs/model/evilmod.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    others = [folder for folder in sys.path if not Path(folder, "runs").is_dir()]  # such as a checkout with a demo
    monkeypatch.setattr(sys, "path", others)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "runs"]:
        del sys.modules[name]


def poison(project, where, value):
    key = where.partition(".")[0].partition(" ")[0]
    for file in project.glob("runs/model/**/manifest.json"):
        run = json.loads(file.read_text())["run"]
        seal(file.parent, run=run | {key: value})
    about = json.loads((project / "runs/model/run.json").read_text())
    about["run"][key] = value
    (project / "runs/model/run.json").write_text(json.dumps(about))


@pytest.mark.parametrize("where", WHERE)
def test_a_name_in_a_checkpoint_is_not_followed(where, project, capsys):
    poison(project, where, WHERE[where])
    assert main(["sample", "runs/model", "-n", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'runs.model.evilmod'" in error and "--allow runs" in error
    assert not (project / "runs/model/ran").exists()


VERBS = {
    "sample": "sample runs/model -n 1",
    "a checkpoint": "sample runs/model/checkpoints/step-0000001 -n 1",
    "evaluate": "evaluate runs/model -n 10",
    "decode": "decode runs/model --prompt a",
    "search": "search runs/model",
    "export": "export runs/model --to diffusers --out exported",
    "ema": "ema runs/model --std 0.1 --out average",
    "pairs": "pairs --teacher runs/model --out pairs -n 2",
    "distill": "distill dmd2 --teacher runs/model --out student",
    "train a folder": "train runs/model --out again",
    "resume": "train own.json --out runs/model",
    "resume elsewhere": "train own.json --out again --resume runs/model",
    "resume at": "train own.json --out again --resume runs/model/checkpoints/step-0000001",
    "init": "train own.json --out again --init runs/model",
    "teacher": "train own.json --out again --teacher runs/model",
    "its help": "train runs/model --help",
    "its config": "train runs/model --print-config",
}


@pytest.mark.parametrize("line", VERBS.values(), ids=VERBS)
def test_no_verb_follows_a_name_in_a_folder(line, project, capsys):
    (project / "own.json").write_text(json.dumps(run_spec(tiny(steps=2, save_every=1))))
    poison(project, "data", {"name": NAME})
    code = main(line.split())
    said = capsys.readouterr()
    assert not (project / "runs/model/ran").exists()
    assert code == 2 or "--help" in line
    assert "--allow runs" in said.err + said.out


@pytest.mark.parametrize("allowed", ["runs", "runs.model", "runs.model.evilmod", NAME])
def test_an_allowed_name_is_followed(allowed, project, capsys):
    poison(project, "data", {"name": NAME})
    assert main(["sample", "runs/model", "-n", "1", "--allow", "other", f"--allow={allowed}"]) == 0
    assert (project / "runs/model/ran").exists()
    with pytest.raises(UserError, match="--allow runs"):  # of that call alone
        gen.load("runs/model")
    assert gen.load("runs/model", allow=(allowed,)).sample(1).x.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("allowed", ["run", "runs.model.evil", "model", "evilmod", "runs.model.evilmod:Other"])
def test_no_other_name_is(allowed, project, capsys):
    poison(project, "data", {"name": NAME})
    assert main(["sample", "runs/model", "--allow", allowed]) == 2
    assert not (project / "runs/model/ran").exists()


@pytest.mark.parametrize("allowed", ["*", "", "runs/model", "runs.", "a b"])
def test_what_is_no_package_cannot_be_allowed(allowed, project, capsys):
    assert main(["sample", "runs/model", "--allow", allowed]) == 2
    assert f"allow = {allowed!r}" in capsys.readouterr().err


def test_what_the_user_types_or_writes_is_followed(project, capsys):
    (project / "mine.py").write_text("from gen.data.digits import Digits\n")
    (project / "own.json").write_text(json.dumps({"run": run_spec(tiny(steps=2)) | {"data": {"name": "mine:Digits"}}}))
    assert main(["train", "own.json", "--out", "own", "--quiet"]) == 0
    assert main(["train", "own.json", "--out", "own", "--quiet", "--steps", "3"]) == 0
    assert main(["train", "digits", "--data", "mine:Digits", "--out", "typed", "--print-config"]) == 0
    sys.modules.pop("mine")


def test_a_class_of_the_user_s_own_resumes_and_loads_what_it_trained(tmp_path):
    run = tiny(steps=2, save_every=1, data="tests.contracts.my_data:MyData")
    run = tiny(steps=2, save_every=1, data=run.data, model={**run_spec(run)["model"], "classes": 2})
    gen.train(run, tmp_path / "run", quiet=True)
    done = gen.train(run, tmp_path / "run", quiet=True)
    assert done.pipeline().sample(1).x.shape == (1, 1, 8, 8)
    with pytest.raises(UserError, match="--allow tests"):
        gen.load(tmp_path / "run")
    with pytest.raises(UserError, match="--allow tests"):
        gen.distill("dmd2", tmp_path / "run", tmp_path / "student", quiet=True)
    gen.distill("dmd2", tmp_path / "run", tmp_path / "student", changes={"steps": 1}, quiet=True, allow=("tests",))


OUT = ["lib.x", "lib", "../evil", "..", "", ".", "_private", "__init__", "ｈeun", "heun\0", "HEUN", "heun/", "heun.py"]


@pytest.mark.parametrize("name", OUT, ids=map(ascii, OUT))
def test_a_registered_name_leads_nowhere_but_into_its_folder(name):
    before = set(sys.modules)
    with pytest.raises(UserError, match="unknown name"):
        find(name, "samplers.solvers")
    assert {m for m in set(sys.modules) - before if "gen" not in m} == set()
    assert name not in names("samplers.solvers")


@pytest.mark.parametrize("name", ["a:", ":b", ":", "a..b:C", "a:b:c", "a/b:C", "..a:b", "a:b.c"])
def test_what_is_no_name_of_a_class_is_refused(name):
    with pytest.raises(UserError, match="no name of a class"):
        build("samplers.solvers", name)
    with names_from("file"), pytest.raises(UserError):
        build("samplers.solvers", name)


def test_a_searched_grid_names_no_code(project):
    (project / "grid.json").write_text(json.dumps({"path": {"name": NAME}, "times": [1, 0]}))
    with pytest.raises(UserError, match=r"grid\.json names .*--allow runs"):
        gen.load(project / "runs/model").sample(
            1, grid={"name": "searched", "file": str(project / "grid.json")}, steps=1
        )
    assert not (project / "runs/model/ran").exists()


def test_names_are_held_again_after_an_error():
    with pytest.raises(ZeroDivisionError), allowing(["evilmod"]), names_from("x"):
        1 / 0  # noqa: B018
    with names_from("x"), pytest.raises(UserError, match="x names 'evilmod:A'"):
        build("data", "evilmod:A")


@pytest.mark.slow
@pytest.mark.parametrize("started", ["-m gen", "gen"])
def test_files_of_the_current_folder_hide_no_package_and_stand_in_for_none(started, project):
    hidden = {"torch", "safetensors", "xformers", "lpips", "samplers", "tomllib", "numpy", "json", "gen"}
    for name in hidden - ({"json", "gen"} if started == "-m gen" else set()):  # Python reads those before gen runs
        (project / f"{name}.py").write_text(f"open({str(project / 'ran')!r}, 'a').write('{name} ')\n")
    code = "import sys; del sys.path[0]; from gen.cli import main; raise SystemExit(main())"  # as the command does
    words = ["-m", "gen"] if started == "-m gen" else ["-c", code]
    env = {"PYTHONPATH": str(Path(gen.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, *words, "sample", "runs/model", "-n", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert not (project / "ran").exists(), (project / "ran").read_text()


def test_a_checkpoint_s_own_classes_are_no_plain_names(project):
    """A module of gen's, named as a foreign one, is refused too: its registered name would do."""
    poison(project, "data", {"name": "gen.data.digits:Digits"})
    with pytest.raises(UserError, match="--allow gen"):
        gen.load("runs/model")
    assert checkpoints.manifest_of("runs/model")["run"]["data"]["name"] == "gen.data.digits:Digits"
