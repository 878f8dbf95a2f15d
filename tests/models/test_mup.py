"""muP: what it changes of a DiT, and that its activations then move alike in every width."""

from dataclasses import replace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.tap import FeatureRecorder
from gen.models.dit import DiT
from gen.models.layers.mup import Readout
from gen.training.optim import parameter_groups
from gen.training.optim.adamw import AdamW
from gen.training.trainer import Trainer
from tests.gen.tiny import tiny

BASE = DiT(size=4, patch=2, channels=4, classes=10, width=72, heads=1, depth=2, time_scale=1000.0, mup_base=288)


def test_matrices_learn_slower_in_proportion_and_nothing_else():
    spec = BASE.wider(576)
    scales = spec.build().lr_scales()
    block = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    expected = {f"blocks.{i}.{name}.weight" for i in (0, 1) for name in block}
    expected |= {"t_embedder.mlp.2.weight", "final_layer.adaLN_modulation.1.weight"}
    assert set(scales) == expected and set(scales.values()) == {0.5}
    assert set(replace(BASE, width=288, heads=4).build().lr_scales().values()) == {1.0}
    assert replace(spec, mup_base=None).build().lr_scales() == {}
    assert replace(spec, qk_norm=True).build().lr_scales() == scales


def test_heads_keep_their_size_and_the_base_stays():
    spec = BASE.wider(1152)
    assert (spec.width, spec.heads, spec.mup_base) == (1152, 16, 288)
    digits = DiT.preset("digits").wider(256)
    assert (digits.heads, digits.mup_base) == (16, 64)
    assert build("models", spec_of(digits)) == digits
    with pytest.raises(UserError, match=r"DiT\.width 100 has no whole number of heads of size 72"):
        BASE.wider(100)
    with pytest.raises(UserError, match=r"mup_base = 0; it must be in \[1, inf\)"):
        replace(BASE, mup_base=0)


def test_weights_start_with_unit_gain_and_the_output_at_zero():
    net = BASE.wider(576).build().requires_grad_(False)
    for name, weight in net.named_parameters():
        if name.endswith("bias") or name == "final_layer.linear.weight":
            assert not weight.any(), name
        elif name.endswith("embedding_table.weight"):
            assert float(weight.std()) == pytest.approx(1, rel=0.05)
        elif name != "pos_embed":
            assert float(weight.std()) == pytest.approx(weight[0].numel() ** -0.5, rel=0.05), name
    x, y = torch.randn(2, 4, 4, 4), {"y": torch.tensor([0, 10])}
    record = FeatureRecorder(("blocks.*", "final"))
    assert not net(x, torch.rand(2), y, tap=record).any()
    assert record.features["blocks.1"].std() > 0.1  # no adaLN-Zero: the blocks do something from the first step


def test_the_last_layer_divides_its_input_by_the_ratio():
    net = BASE.wider(576).build()
    layer = net.final_layer.linear
    assert isinstance(layer, Readout) and layer.ratio == 2
    h = torch.randn(3, 576)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    torch.testing.assert_close(layer(h), torch.nn.functional.linear(h, layer.weight / 2, layer.bias))
    with torch.device("meta"):
        names = [list(replace(BASE, mup_base=base).build().state_dict()) for base in (None, 288)]
    assert names[0] == names[1]


def test_the_trainer_steps_matrices_with_their_own_rate(tmp_path):
    spec = tiny().model
    run = tiny(model=spec.wider(32), optim={"name": "adamw", "lr": 1e-3, "weight_decay": 0.1})
    trainer = Trainer(run, tmp_path, "never", "", True)
    trainer.step(next(trainer.batches()))
    found = {group["scale"]: (group["lr"], group["weight_decay"]) for group in trainer.optims["net"].param_groups}
    assert found == {1.0: (1e-3, 0.1), 0.5: (5e-4, 0.2)}


def coordinates(spec, seed, lr=1e-3, steps=4):
    """(mean |activation|, mean |its change since the start|) by site, after some steps on one random batch.

    The readout starts at 0, so the first step moves it alone, and the rest of the network moves from the second on.
    """
    torch.manual_seed(seed)
    net = spec.build()
    optim = AdamW(lr=lr).build(parameter_groups(net))
    for group in optim.param_groups:
        group["lr"] = lr * group["scale"]
    x, target = torch.randn(2, 4, 4, 4, 4)
    t, cond = torch.rand(4), {"y": torch.randint(0, 10, (4,))}
    seen = []
    for _ in range(steps + 1):
        record = FeatureRecorder(("time", "hidden.*", "blocks.*.raw", "final"))
        loss = (net(x, t, cond, tap=record) - target).square().mean()
        seen.append({site: h.detach() for site, h in record.features.items()})
        optim.zero_grad()
        loss.backward()
        optim.step()
    first, last = seen[0], seen[-1]
    return {site: (float(h.abs().mean()), float((h - first[site]).abs().mean())) for site, h in last.items()}


def exponents(mup_base, widths=(72, 216, 648)):
    """The slopes of log mean |activation| and log mean |change| over log width, by site."""
    found = [coordinates(replace(BASE, width=w, heads=w // 72, mup_base=mup_base), 0) for w in widths]
    x = torch.tensor(widths, dtype=torch.float64).log()

    def slope(site, which):
        y = torch.tensor([run[site][which] for run in found], dtype=torch.float64).log()
        return float(((x - x.mean()) * y).sum() / ((x - x.mean()) ** 2).sum())

    return {site: (slope(site, 0), slope(site, 1)) for site in found[0]}


@pytest.mark.slow
def test_activations_do_not_grow_with_the_width():
    for site, (size, change) in exponents(mup_base=288).items():
        assert abs(size) < 0.1 and abs(change) < 0.1, f"{site}: {size:.3f}, {change:.3f}"


@pytest.mark.slow
def test_without_it_they_do():
    found = exponents(mup_base=None)
    for site in ("hidden.0", "hidden.1", "final", "time"):
        assert found[site][1] > 0.3, f"{site}: {found[site]}"
