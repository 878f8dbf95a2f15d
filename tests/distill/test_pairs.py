"""The pair store: numbered noise, shards in any order and from any machine, and the noise of real data."""

import shutil
from dataclasses import replace

import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import override
from gen.data.captioned_digits import CaptionedDigits
from gen.data.lib.shards import ShardPlan
from gen.data.pairs import Pairs
from gen.diffusion.noise import Noise, training_noise
from gen.diffusion.path import EDM, Flow
from gen.diffusion.worlds import Gaussian
from gen.distillers.lib.pairs import invert_pairs, pair_noise, real_data_of
from gen.pipeline import Pipeline
from gen.training.objectives import Batch
from gen.training.pair_store import make_pairs
from gen.training.recipes.captioned_digits import captioned_digits
from gen.training.run import Sampler
from gen.training.trainer import train
from tests.gen.tiny import seal, tiny

MEAN, STD = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.6, 0.3, 1.5])
ONE = Sampler("jump", steps=1)


def pipeline(path=None):
    return Pipeline(Gaussian(path or Flow(), MEAN, STD), (3,), name="gaussian")


def test_pairs_of_a_teacher_of_captions_have_its_captions(tmp_path):
    small = {"steps": 1, "batch_size": 2, "model.width": 8, "model.depth": 1, "model.heads": 2, "model.text_width": 8}
    quiet = {"validate_every": 0, "sample_every": 0, "save_every": 0}
    teacher = train(override(captioned_digits(), {**small, **quiet}), tmp_path / "teacher", quiet=True).folder
    changes = {"objective.pairs": 4, "objective.teacher_sampler.steps": 1, "steps": 1}
    student = gen.distill("reflow", teacher, tmp_path / "student", changes=changes, quiet=True).folder
    pairs, data = Pairs(str(student / "pairs"), 0.0).open("train"), CaptionedDigits().open("train")
    assert [pairs.caption(i) for i in range(4)] == [data.caption(i) for i in range(4)]
    asked = gen.load(teacher).sample(cond=[pairs.caption(2)], steps=1, seed=1, start=2, guide="none")
    torch.testing.assert_close(pairs[2]["x"], asked.x[0])
    assert gen.load(student).sample(cond="a bold seven, upright", n=2).x.isfinite().all()
    with pytest.raises(UserError, match="samples by captions: give prompts, --prompts FILE"):
        make_pairs(gen.load(teacher), tmp_path / "none", 4, ONE)


def test_parts_made_apart_are_the_whole(tmp_path):
    whole = make_pairs(pipeline(), tmp_path / "whole", 50, ONE, plan=ShardPlan(16, quiet=True))
    for k in (2, 1):
        if k == 1:
            with pytest.raises(UserError, match="holds 2 of 4 shards: run the command again"):
                Pairs(str(tmp_path / "parts")).open("train")
        parts = make_pairs(pipeline(), tmp_path / "parts", 50, ONE, plan=ShardPlan(16, (k, 2), quiet=True))
    assert len(list((tmp_path / "parts").iterdir())) == 4
    guided = replace(pipeline(), sampler=Sampler(guide="cfg"))  # as it is sampled by default, which pairs are not
    make_pairs(guided, tmp_path / "parts", 50, ONE, plan=ShardPlan(16, quiet=True))
    for split in ("train", "test"):
        ours, theirs = whole.open(split), parts.open(split)
        assert len(ours) == len(theirs)
        assert all(torch.equal(ours.columns[key], theirs.columns[key]) for key in ("x", "origin"))
        assert ours.fingerprint == theirs.fingerprint
    with pytest.raises(UserError, match="shards, size differ"):
        make_pairs(pipeline(), tmp_path / "whole", 50, ONE, plan=ShardPlan(25, quiet=True))
    with pytest.raises(UserError, match="part = 3 of 2"):
        make_pairs(pipeline(), tmp_path / "whole", 50, ONE, plan=ShardPlan(part=(3, 2)))


class Points:
    """Data of the Gaussian."""

    def open(self, split):
        x = MEAN + STD * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
        return Opened([{"x": row} for row in x])


class Opened(list):
    fingerprint = "points"


@pytest.mark.parametrize("path", [Flow(), EDM(8.0)], ids=repr)
def test_the_noise_of_real_data_leads_back_to_them(path, tmp_path):
    """And is unit noise, but for the little that the data get before they are walked upwards."""
    steps = {"grid": "karras"} if isinstance(path, EDM) else {}
    how = Sampler("heun", steps=60, **steps)
    pairs = invert_pairs(pipeline(path), Points(), tmp_path, how, n=40, plan=ShardPlan(25, quiet=True)).open("train")
    x, z = pairs.columns["x"], pairs.columns["noise"]
    assert x.shape == z.shape == (38, 3) and "origin" not in pairs.columns
    batch = Batch(x, {"noise": z, "y": z}, training_noise(0, 0, range(38)))
    unit, cond = pair_noise(batch, "test")
    assert torch.equal(unit, z) and list(cond) == ["y"]
    world = pipeline(path).denoiser
    top, end = (torch.tensor(t).double().expand(38) for t in (path.t1, 0.0))
    assert (world.flow(path.start(z, top[0]), top, end) - x).abs().max() < 0.03
    with pytest.raises(UserError, match="an inversion reuses no features"):
        invert_pairs(pipeline(path), Points(), tmp_path, Sampler("heun", steps=6, cache="fora"), n=40)
    with pytest.raises(UserError, match="inverted"):
        make_pairs(pipeline(path), tmp_path, 40, how, plan=ShardPlan(25, quiet=True))


def test_pairs_from_the_command_line_serve_several_students(tmp_path, capsys):
    """And the students of students learn the noise of the first teacher's real data."""
    run = tiny(steps=2, validate_every=0, path=EDM(8.0), parameterisation={"name": "edm_precond"})
    taught = train(run, tmp_path / "teacher", quiet=True).folder
    words = ["pairs", "--teacher", str(taught), "--out", str(tmp_path / "pairs"), "-n", "40", "--quiet"]
    assert main([*words, "--steps", "1", "--shard", "32", "--part", "0/2"]) == 2
    for part in ("1/2", "2/2"):
        assert main([*words, "--steps", "1", "--shard", "4096", "--part", part]) == 0
    assert "1 shards" in capsys.readouterr().out
    store = {"objective.store": str(tmp_path / "pairs"), "objective.pairs": 40, "objective.teacher_sampler.steps": 1}
    first = gen.distill("reflow", taught, tmp_path / "first", changes={**store, "steps": 2}, quiet=True)
    assert not (tmp_path / "first" / "pairs").exists()
    net = first.pipeline().denoiser
    assert net.path == Flow() and type(net.net.spec).__name__ == "Reparameterised"  # a velocity, from the EDM teacher
    assert first.pipeline().info["run"]["teacher"] is None
    real = {"objective.real_data": True, "objective.pairs": 30, "objective.teacher_sampler.steps": 2, "steps": 2}
    second = gen.distill("reflow", first.folder, tmp_path / "second", changes=real, quiet=True)
    pairs = second.pipeline().info["run"]["data"]
    x = Pairs(pairs["path"]).open("train").columns["x"]
    digits = run.data.open("train")
    rows = torch.stack([digits[i]["x"] for i in range(len(digits))]).flatten(1)
    assert ((x.flatten(1)[:, None] - rows).abs().amax(2).amin(1) == 0).all()


def test_a_run_on_pairs_alone_has_no_real_data(tmp_path):
    with pytest.raises(UserError, match="names no teacher"):
        real_data_of(tiny(data=Pairs(str(tmp_path))))
    with pytest.raises(UserError, match="names none"):
        real_data_of(tiny(data=None, objective=None))
    assert real_data_of(tiny()) == tiny().data


def test_data_without_pairs_are_refused():
    with pytest.raises(UserError, match="Knowledge needs pairs"):
        pair_noise(Batch(torch.zeros(2, 3), {}, Noise((0, 1))), "Knowledge")


def stores(tmp_path):
    """Return a store of four shards, and others that differ in one thing."""
    karras = Sampler("jump", steps=1, grid="karras")
    makers = {"a": {}, "seed": {"seed": 2}, "sampler": {"sampler": karras}, "n": {"n": 49}}
    for name, change in makers.items():
        how = {"n": 50, "sampler": ONE, "seed": 1, "plan": ShardPlan(16, quiet=True)} | change
        make_pairs(pipeline(), tmp_path / name, **how)
    make_pairs(pipeline(), tmp_path / "size", 50, ONE, plan=ShardPlan(15, quiet=True))
    return tmp_path / "a"


def copy(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def take(folder, other, index):
    """Put another store's shard in place of one's own."""
    copy(folder.with_name(other) / f"shard-{index:05d}", folder / f"shard-{index:05d}")


def swap(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


FAULTS = {
    "copied": (lambda a: copy(a / "shard-00000", a / "shard-00001"), "shard-00001 is shard 0 of its store, not 1"),
    "copied the last": (lambda a: copy(a / "shard-00003", a / "shard-00002"), "shard-00002 is shard 3 of its store"),
    "swapped": (lambda a: swap(a / "shard-00000", a / "shard-00002"), "shard-00000 is shard 2 of its store, not 0"),
    "renamed": (lambda a: (a / "shard-00003").rename(a / "shard-4"), "shard-4 is shard 3 of its store, not 3: was it"),
    "another seed": (lambda a: take(a, "seed", 1), "another store: seed differ"),
    "another sampler": (lambda a: take(a, "sampler", 1), "another store: sampler differ"),
    "another number": (lambda a: take(a, "n", 1), "another store: n differ"),
    "another size": (lambda a: take(a, "size", 2), "another store: size differ"),
    "the first is foreign": (lambda a: take(a, "seed", 0), "another store"),
    "one more": (lambda a: copy(a / "shard-00003", a / "shard-00004"), "shard-00004 is too many: the store has 4"),
    "one less": (lambda a: shutil.rmtree(a / "shard-00001"), "holds 3 of 4 shards"),
    "the tensors of another": (
        lambda a: shutil.copy(a / "shard-00000/pairs.safetensors", a / "shard-00001/pairs.safetensors"),
        "does not match its sha256",
    ),
    "no store": (lambda a: [shutil.rmtree(s) for s in a.iterdir()], "holds no pairs"),
    "a checkpoint": (lambda a: seal(a / "shard-00000", store=None), "shard-00000 is no shard of pairs"),
    "a lie": (lambda a: seal(a / "shard-00001", rows=15), "have other lengths or names than its manifest says"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_shard_says_which_it_is(fault, tmp_path):
    folder = stores(tmp_path)
    break_, message = FAULTS[fault]
    break_(folder)
    for split in ("train", "test"):
        with pytest.raises(UserError, match=message):
            Pairs(str(folder)).open(split)


def test_making_pairs_does_not_take_over_what_is_another_s(tmp_path):
    folder = stores(tmp_path)
    swap(folder / "shard-00000", folder / "shard-00002")
    with pytest.raises(UserError, match="shard-00000 is shard 2 of its store, not 0"):
        make_pairs(pipeline(), folder, 50, ONE, plan=ShardPlan(16, quiet=True))


SPLITS = [(50, 0.05, (48, 2)), (8, 0.05, (7, 1)), (8, 0.0, (8, None)), (1, 0.5, (None, 1))]


@pytest.mark.parametrize(("n", "holdout", "rows"), SPLITS)
def test_a_split_has_a_row_or_says_so(n, holdout, rows, tmp_path):
    make_pairs(pipeline(), tmp_path, n, ONE, plan=ShardPlan(quiet=True))
    for split, count in zip(("train", "test"), rows, strict=True):
        if count is None:
            with pytest.raises(UserError, match=f"{split} has none of its {n} rows at holdout = {holdout}"):
                Pairs(str(tmp_path), holdout).open(split)
        else:
            assert len(Pairs(str(tmp_path), holdout).open(split)) == count
    with pytest.raises(UserError, match="unknown split 'val'"):
        Pairs(str(tmp_path), holdout).open("val")
