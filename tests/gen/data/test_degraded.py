"""Degraded pictures beside their originals: by index and seed, anew by key, by any operator."""

import pickle

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.degraded import Degraded
from gen.data.digits import Digits
from gen.data.mixture import MixturePoints
from gen.operators.bicubic import Bicubic
from gen.operators.gfpgan import GFPGAN
from gen.operators.inpaint import Inpaint
from gen.operators.real_esrgan import RealESRGAN


def test_items_have_their_degraded_copy():
    data = Degraded(Digits(), RealESRGAN(2))
    items, plain = data.open("test"), Digits().open("test")
    assert (data.shape, data.classes, len(items)) == ((1, 8, 8), 10, len(plain))
    one = items[3]
    assert torch.equal(one["x"], plain[3]["x"]) and torch.equal(one["y"], plain[3]["y"])
    assert one["low"].shape == (1, 4, 4)
    assert torch.equal(one["low"], data.open("test")[3]["low"])
    assert not torch.equal(one["low"], Degraded(Digits(), RealESRGAN(2), seed=1).open("test")[3]["low"])
    batch = items.draw_batch([3, 3], [5, 6])
    assert torch.equal(batch["low"][0], items.draw(3, 5)["low"])
    assert not torch.equal(batch["low"][0], batch["low"][1])
    others = (RealESRGAN(2), {"seed": 1}), (RealESRGAN(4), {}), (RealESRGAN(2), {"noise": 0.1})
    fingerprints = {Degraded(Digits(), operator, **given).open("test").fingerprint for operator, given in others}
    assert len({items.fingerprint, *fingerprints}) == 4
    assert build("data", spec_of(data)) == data
    assert torch.equal(pickle.loads(pickle.dumps(items))[3]["low"], one["low"])
    assert Degraded(Digits(), GFPGAN()).open("test")[0]["low"].shape == (1, 8, 8)


def test_an_operator_measures_and_one_with_a_seed_is_another_for_each_picture():
    x = Digits().open("test")[2]["x"]
    small = Degraded(Digits(), Bicubic()).open("test")[2]["low"]
    assert torch.equal(small, Bicubic().on((1, 8, 8)).A(x[None])[0])
    noisy = torch.stack([Degraded(Digits(), Bicubic(), 0.1, seed=s).open("test")[2]["low"] - small for s in range(50)])
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.1)
    spec = Inpaint(mask="lama")
    varied, fixed = (Degraded(Digits(), spec, fixed=fixed).open("test") for fixed in (False, True))
    hole = spec.on((1, 8, 8))
    same = []
    for i in range(4):
        x, low = varied[i]["x"], varied[i]["low"]
        one_hole = hole.picture(hole.A(x[None]))[0]
        assert torch.equal(fixed[i]["low"], one_hole)
        assert bool(((low == x) | (low == 0)).all()) and not torch.equal(low, x)
        same.append(torch.equal(low, one_hole))
    assert not all(same)


def test_what_cannot_be_degraded_is_refused():
    for wrong, why in (
        (lambda: Degraded(Digits(), RealESRGAN(3)), "does not divide"),
        (lambda: Degraded(MixturePoints(), GFPGAN()), "no pictures"),
        (lambda: Degraded(Digits(), Bicubic(), noise=-1.0), "noise"),
    ):
        with pytest.raises(UserError, match=why):
            wrong()
