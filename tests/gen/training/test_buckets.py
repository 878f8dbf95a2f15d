"""Training on data in buckets: one shape a step, every item once an epoch, on any number of processes, resumed."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gen import distill, load
from gen.cli import main
from gen.config.errors import UserError
from gen.data.folder import Folder
from gen.eval.reference import Reference
from gen.training.log import read_metrics
from gen.training.order import BucketOrder, ItemOrder
from gen.training.run import Run
from gen.training.stream import ShuffledStream, iterate_steps
from gen.training.trainer import train
from tests.gen.tiny import tiny
from tests.gen.training.test_processes import ACCELERATE, apart, launch

COUNTS = (1, 5, 23, 40)  # items of each bucket
BUCKETS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


@pytest.mark.parametrize("batch", [1, 4, 7, 16, 100])
def test_every_item_comes_once_an_epoch_and_a_step_has_one_bucket(batch):
    order = BucketOrder(BUCKETS, batch, seed=3)
    epochs = 30
    n = epochs * len(BUCKETS)
    items = [order.at(p)[1] for p in range(n // batch * batch)]
    assert all(len({BUCKETS[i] for i in items[p : p + batch]}) == 1 for p in range(0, len(items), batch))
    for bucket, count in enumerate(COUNTS):
        own = [i for i in items if BUCKETS[i] == bucket]
        whole = Counter(own[: len(own) // count * count])
        assert set(whole.values()) <= {len(own) // count}, "epochs of its own"
        assert len(set(own[:count])) == min(count, len(own))
        assert abs(len(own) - epochs * count) <= 2 * batch, "its share of the steps"
    if batch == 1:
        assert set(Counter(items).values()) == {epochs}


def test_a_position_says_its_item_and_orders_depend_on_seed_and_epoch():
    def some(seed, positions):
        return [BucketOrder(BUCKETS, 4, seed).at(p) for p in positions]

    order = BucketOrder(BUCKETS, 4, seed=1)
    positions = [*range(0, 400, 3), 0, 17, 399, 5]
    assert [order.at(p) for p in positions] == some(1, positions)
    assert some(1, range(69)) != some(2, range(69))
    steps = [BUCKETS[order.at(4 * step)[1]] for step in range(80)]
    assert steps[:17] != steps[17:34], "steps are shuffled in each epoch"
    assert [ItemOrder(9, 5).at(p)[1] for p in range(9)] != [ItemOrder(9, 5).at(p)[1] for p in range(9, 18)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(36):
        height, width = [(16, 16), (12, 20), (20, 12)][i % 3]
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        (folder / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"{i:02}.png")
    return folder


def bucketed(photos, **changes):
    data = {"name": "folder", "path": str(photos), "size": 16, "buckets": 4, "crop": "random", "flip": "random"}
    model = {"name": "dit", "size": 16, "patch": 4, "channels": 3, "classes": 2, "width": 16, "depth": 1, "heads": 2}
    return tiny(**{"data": data, "model": model, "sample_every": 6, "save_every": 3} | changes)


def test_steps_are_shared_out_and_drawn_the_same_by_workers(photos):
    data = Folder(str(photos), 16, buckets=4, crop="random", flip="random", holdout=0.0).open("train")
    run = bucketed(photos, steps=9)

    def steps(share, rank, micro, start=0, workers=0):
        stream = ShuffledStream(data, 0, 8)
        found = iterate_steps(stream, replace(run, workers=workers), start, share, rank, micro)
        return [torch.cat([batch["x"] for batch in batches]) for _, batches in found]

    whole = steps(8, 0, 8)
    assert {x.shape for x in whole} == {(8, 3, 16, 16), (8, 3, 12, 20), (8, 3, 20, 12)}
    halves = [torch.cat(pair) for pair in zip(steps(4, 0, 2), steps(4, 1, 4), strict=True)]
    for other in (halves, steps(8, 0, 8, workers=2)):
        assert all(map(torch.equal, whole, other))
    assert all(map(torch.equal, whole[5:], steps(8, 0, 8, start=5)))


def test_a_run_in_buckets_resumes_to_the_bit(photos, tmp_path, capsys):
    run = bucketed(photos)
    train(run, tmp_path / "one")
    counts = Folder(str(photos), 16, buckets=4).open("train").bucket_counts()
    said = ", ".join(f"{name} {count}" for name, count in counts.items())
    assert f"buckets: {said}\n" in capsys.readouterr().err and sum(counts.values()) == 32
    train(replace(run, steps=3), tmp_path / "again", quiet=True)
    train(run, tmp_path / "again", quiet=True)
    assert apart(tmp_path / "one/final", tmp_path / "again/final") == 0.0
    assert sum("val_loss" in event for event in read_metrics(tmp_path / "one/metrics.jsonl")) == 2


@pytest.mark.slow
def test_two_processes_train_on_buckets_as_one(photos, tmp_path):
    run = bucketed(photos, optim={"name": "tests.contracts.my_optimiser:SGD"})
    train(run, tmp_path / "one", quiet=True)
    launch(ACCELERATE, run, tmp_path / "two")
    assert apart(tmp_path / "one/final", tmp_path / "two/final") < 1e-6


def test_a_model_of_buckets_is_sampled_at_any_of_their_sizes(photos, tmp_path, capsys):
    train(bucketed(photos, steps=2), tmp_path / "run", quiet=True)
    pipeline = load(tmp_path / "run")
    assert pipeline.shape == (3, 16, 16) and pipeline.sample(2).x.shape == (2, 3, 16, 16)
    with pytest.warns(
        UserWarning, match=r"run was trained at (\d+x\d+, )+\d+x\d+ alone: at 32x40 its samples may be of no use"
    ):
        pipeline.resized(32, 40)
    assert pipeline.resized(12, 20).sample(3, guide={"name": "cfg", "scale": 2}).x.shape == (3, 3, 12, 20)
    assert torch.equal(pipeline.resized(16, 16).sample(2).x, pipeline.sample(2).x)
    words = ["sample", str(tmp_path / "run"), "-n", "2", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "s.npz"), "--size", "20x12"]) == 0
    assert np.load(tmp_path / "s.npz")["arr_0"].shape == (2, 20, 12, 3)
    capsys.readouterr()
    for size, message in [("13x20", "heights and widths that are multiples of 4, such as 16x20"), ("axb", "32x48")]:
        assert main([*words, str(tmp_path / "t.npz"), "--size", size]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    reference = Reference.open(pipeline.info["run"]["data"])
    assert reference.data["size"] == 16 and reference.data["buckets"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"name": "lightning_dit", "size": 16, "patch": 4, "channels": 3, "classes": 2, "width": 16,
                    "depth": 1, "heads": 2}}, "alone: take dit, unet"),
        ({"data.buckets": 2}, "multiples of 4: so must data.buckets be"),
        ({"objective": {"name": "repa"}}, "several sizes"),
    ],
)  # fmt: skip
def test_what_does_not_take_several_sizes_is_refused(changes, said, photos, tmp_path):
    run = bucketed(photos)
    if "data.buckets" in changes:
        changes = {"data": replace(run.data, buckets=2)}
    with pytest.raises(UserError, match=said) as error:
        train(replace(run, **changes), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value) and not (tmp_path / "run/checkpoints").exists()


def test_students_of_buckets_train_or_are_refused_in_one_line(photos, tmp_path):
    """Those that compare all held-out samples validate on one size; every other one trains on several."""
    train(bucketed(photos, steps=2), tmp_path / "teacher", quiet=True)
    changes = {"steps": 3, "batch_size": 4, "sample_every": 0}
    with pytest.raises(UserError, match="validates by all held-out pictures at once"):
        distill("sid", tmp_path / "teacher", tmp_path / "a", changes=changes, quiet=True)
    for method, more in [("sid", {"validate_every": 0}), ("consistency", {"validate_every": 3})]:
        distill(method, tmp_path / "teacher", tmp_path / method, changes=changes | more, quiet=True)
        assert load(tmp_path / method).resized(20, 12).sample(2).x.shape == (2, 3, 20, 12)


def test_a_module_of_ones_own_is_tried_at_every_size(photos, tmp_path):
    class Square(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(16, 16)

        def forward(self, x, t, cond, *, s=None, tap=None):
            return self.layer(x)

    data = Folder(str(photos), 16, buckets=4)
    run = Run(model=Square(), data=data, objective={"name": "denoise", "class_dropout": 0}, steps=1, batch_size=4)
    with pytest.raises(UserError, match="forward fails on"):
        train(run, tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
