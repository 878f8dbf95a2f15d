"""Specs, the registry of files, and what people read when they mistype."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from gen.config.errors import UserError
from gen.config.spec import build, convert, describe, find, name_of, names, override, part, spec_of
from gen.data.digits import Digits
from gen.data.folder import Folder
from gen.diffusion.path import DDPM, EDM, Flow
from gen.diffusion.times import LogitNormal
from gen.models.dit import DiT
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.dpmpp import DPMpp
from gen.samplers.solvers.dualfast import DualFast
from gen.samplers.solvers.heun import Heun
from gen.training.recipes.digits import digits
from gen.training.run import Sampler


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Outer:
    """What it is. And more.

    A second paragraph.
    """

    steps: int = 10
    name_it: str = "a"
    flag: bool = False
    mode: Literal["no", "bf16"] = "no"
    maybe: int | None = None
    shape: tuple[int, ...] = (1, 8, 8)
    table: Mapping[str, Any] = field(default_factory=dict)
    inner: Inner = Inner()
    path: Any = part("diffusion.path", default=Flow())
    solvers: Any = part("samplers.solvers", default=(Heun(),))
    derived: int = field(default=0, init=False)


@dataclass(frozen=True)
class Needy:
    width: int
    depth: int


@dataclass(frozen=True)
class Pair:
    left: int = 1
    right: int = 1

    def __post_init__(self):
        if self.left != self.right:
            raise UserError(f"left = {self.left}, right = {self.right}")


@dataclass(frozen=True)
class Holder:
    data: Any = part("data", default=Digits())


@dataclass(frozen=True)
class Both:
    pair: Pair = Pair()


def refused(call):
    """The one line of a UserError."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_are_files_or_classes():
    assert {"euler", "heun", "dpmpp", "renoise", "jump"} <= set(names("samplers.solvers"))
    assert {"flow", "edm", "vp", "trig", "ddpm"} <= set(names("diffusion.path"))
    assert "path" not in names("diffusion.path")
    assert {"logit_normal", "log_normal", "u_shaped"} <= set(names("diffusion.times"))
    assert {"min_snr", "edm"} <= set(names("diffusion.weighting"))
    assert names("samplers.solvers") == sorted(names("samplers.solvers"))


def test_find_and_name_of_are_inverse():
    for folder in ("samplers.solvers", "samplers.grids", "samplers.guides", "diffusion.path", "diffusion.times"):
        for name in names(folder):
            assert name_of(find(name, folder)) == name


def test_build_takes_a_name_a_dict_or_a_ready_object():
    assert build("diffusion.path", "flow") == Flow()
    assert build("diffusion.path", {"name": "edm", "sigma_max": 3}) == EDM(3.0)
    assert build("diffusion.path", "edm", sigma_max=3.0) == EDM(3.0)
    assert build("diffusion.times", "logit-normal") == LogitNormal()
    ready = EDM(7.0)
    assert build("diffusion.path", ready) is ready
    assert build(("diffusion.parameterisation", "diffusion.path"), "trig") == build("diffusion.path", "trig")


def test_the_first_folder_that_knows_a_name_wins():
    """ "cosine" is a schedule and a mask path."""
    for first, second in (("training.schedules", "text.mask_path"), ("text.mask_path", "training.schedules")):
        assert type(build((first, second), "cosine")).__module__ == f"gen.{first}"


def test_a_spec_survives_json():
    thing = Outer(maybe=3, path=DDPM("cosine"), inner=Inner(lr=0.5), solvers=(Heun(), Heun()))
    spec = json.loads(json.dumps(spec_of(thing, named=False)))
    assert spec["path"] == {
        "name": "ddpm", "schedule": "cosine", "steps": 1000, "beta_start": 1e-4, "beta_end": 0.02,
    }  # fmt: skip
    assert "derived" not in spec
    assert build("diffusion.path", {**spec, "name": f"{__name__}:Outer"}) == thing


def test_things_from_elsewhere_are_module_and_class(monkeypatch):
    module = types.ModuleType("my_package_of_paths")

    @dataclass(frozen=True)
    class Mine:
        k: int = 1

    Mine.__module__, Mine.__qualname__ = "my_package_of_paths", "Mine"
    module.Mine = Mine
    monkeypatch.setitem(sys.modules, "my_package_of_paths", module)
    built = build("diffusion.path", {"name": "my_package_of_paths:Mine", "k": 4})
    assert built == Mine(4)
    assert spec_of(built) == {"name": "my_package_of_paths:Mine", "k": 4}
    assert "cannot find 'my_package_of_paths:Yours'" in refused(
        lambda: build("diffusion.path", "my_package_of_paths:Yours")
    )
    assert "cannot find 'no_such_package:X'" in refused(lambda: build("diffusion.path", "no_such_package:X"))


def test_unknown_names_and_keys_name_the_nearest():
    assert "unknown name 'huen' in samplers.solvers. Did you mean 'heun'?" in refused(
        lambda: build("samplers.solvers", "huen")
    )
    message = refused(lambda: build("diffusion.path", {"name": "edm", "sigma_mx": 3}))
    assert message == "unknown key 'sigma_mx' of EDM. Did you mean 'sigma_max'? Allowed: sigma_max."
    assert "needs a name. Allowed: bridge, ddpm" in refused(lambda: build("diffusion.path", {"sigma_max": 3}))
    assert "give its name instead" in refused(lambda: build("diffusion.path", EDM(), sigma_max=3))
    assert refused(lambda: build("diffusion.path", {"name": f"{__name__}:Needy", "width": 1})) == "Needy needs depth"


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, 3, 3),
        (int, "3", 3),
        (int, 3.0, 3),
        (int, "1e3", 1000),
        (float, ".9", 0.9),
        (float, "-.5e1", -5.0),
        (tuple[float, ...], "[0.5]", (0.5,)),
        (str, ".9", ".9"),
        (tuple[str, ...], '["a", "3"]', ("a", "3")),
        (Mapping[str, Any], '{"a": 1}', {"a": 1}),
        (float, 3, 3.0),
        (float, "2e-4", 2e-4),
        (bool, "true", True),
        (bool, "False", False),
        (str, "3", "3"),
        (int | None, "none", None),
        (int | None, "null", None),
        (int | None, "7", 7),
        (str | None, "runs/x", "runs/x"),
        (Literal["no", "bf16"], "bf16", "bf16"),
        (Literal["none", "bf16"], "none", "none"),
        (Literal["none"] | None, None, None),
        (tuple[float, float], "[0.9, 0.95]", (0.9, 0.95)),
        (tuple[float, float] | None, [1, 2], (1.0, 2.0)),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (tuple[int, ...], [], ()),
        (Mapping[str, Any], {"a": 1}, {"a": 1}),
        (Inner, {"lr": 2}, Inner(2.0)),
    ],
)
def test_values_are_read_as_their_annotation_says(hint, value, expected):
    got = convert(value, hint, "here")
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, "3.5"),
        (int, 3.5),
        (int, True),
        (int, "many"),
        (float, "fast"),
        (float, True),
        (float, None),
        (bool, 1),
        (bool, "yes"),
        (str, 3),
        (Literal["no", "bf16"], "bf61"),
        (tuple[float, float], [1.0]),
        (tuple[float, float], [1.0, "x"]),
        (tuple[int, ...], 3),
        (Mapping[str, Any], [1]),
        (int | None, "x"),
    ],
)
def test_wrong_values_are_refused_in_one_line(hint, value):
    message = refused(lambda: convert(value, hint, "Run.steps"))
    assert "Run.steps: got" in message
    assert "expected" in message or "Allowed" in message


def test_override_changes_a_copy():
    outer = Outer()
    new = override(outer, {"steps": "20", "inner.lr": "2e-4", "mode": "bf16"})
    assert outer == Outer()
    assert new.steps == 20


def test_override_reaches_into_parts_in_order():
    new = override(Outer(), {"path": "edm", "path.sigma_max": "3", "inner.lr": "2e-4", "inner.betas": "[0.5, 0.6]"})
    assert new == Outer(path=EDM(3.0), inner=Inner(2e-4, (0.5, 0.6)))
    assert override(new, {"path": "edm"}).path == EDM()
    assert override(new, {"path": '{"name": "edm", "sigma_max": 5}'}).path == EDM(5.0)
    assert override(new, {"maybe": "none", "flag": "true"}) == dataclasses.replace(new, flag=True)


def test_fields_that_must_agree_change_together():
    new = override(Pair(), {"left": "2", "right": "2"})
    assert new == Pair(2, 2) and override(Both(), {"pair.left": "2", "pair.right": "2"}) == Both(new)
    assert "left = 2, right = 1" in refused(lambda: override(Pair(), {"left": "2"}))


def test_a_part_chosen_by_name_takes_its_dotted_keys_in_any_order():
    """Also at any depth, and where a key has no default, as path and size of a folder of pictures."""
    run = digits()
    folder = Folder(path="own32", size=32)
    both = {"data": "folder", "data.path": "own32", "data.size": "32"}
    for keys in (list(both), list(both)[::-1]):
        data = override(Holder(), {key: both[key] for key in keys}).data
        assert data == folder
    deep = {
        "objective": "reflow",
        "objective.teacher_sampler.steps": "3",
        "objective.teacher_sampler.solver": "dpmpp",
        "objective.teacher_sampler.solver.solver_order": "3",
    }
    for keys in (list(deep), list(deep)[::-1]):
        objective = override(run, {key: deep[key] for key in keys}).objective
        assert objective.teacher_sampler == Sampler(DPMpp(3), steps=3)
    spec = {"sampler.solver": '{"name": "dualfast", "c": 1}', "sampler.solver.solver": "dpmpp"}
    spec["sampler.solver.solver.solver_order"] = "3"
    assert override(run, spec).sampler.solver == DualFast(DPMpp(3), c=1)
    assert "unknown key 'pth' of Folder" in refused(lambda: override(Holder(), {**both, "data.pth": "x"}))


def test_presets_are_names():
    wide = DiT.preset("DiT-B/2", size=8, channels=1, classes=10)
    shape = {"model.size": "8", "model.channels": "1", "model.classes": "10", "model.time_scale": "1"}
    assert override(digits(), {"model": "dit-b/2", **shape}).model == wide
    assert override(digits(), {"model.preset": "B/2", **shape}).model == wide
    assert build("models", {"name": "sit-xl/2", "classes": 3}) == DiT.preset("SiT-XL/2", classes=3)
    assert "unknown name 'dit-z/2'" in refused(lambda: build("models", "dit-z/2"))


def test_override_names_the_nearest():
    assert "unknown key 'stps' of Outer. Did you mean 'steps'?" in refused(lambda: override(Outer(), {"stps": "1"}))
    assert "unknown key 'rl' of Inner" in refused(lambda: override(Outer(), {"inner.rl": "1"}))
    assert "steps is 10 and has no key 'lr'" in refused(lambda: override(Outer(), {"steps.lr": "1"}))
    assert "unknown key 'derived'" in refused(lambda: override(Outer(), {"derived": "1"}))
    assert "unknown name 'emd' in diffusion.path. Did you mean 'edm'?" in refused(
        lambda: override(Outer(), {"path": "emd"})
    )


def test_a_plug_ins_own_complaint_comes_through():
    assert "it must be 0 <= low < high" in refused(lambda: build("samplers.guides", "cfg", interval=[3, 1]))
    assert "expected" in refused(lambda: build("samplers.guides", "cfg", interval=[1]))
    assert build("samplers.guides", "cfg", interval=[1, 3]) == CFG(interval=(1.0, 3.0))


def test_describe_is_the_first_paragraph():
    assert describe(Outer) == "What it is. And more."
    assert describe(len) != ""
