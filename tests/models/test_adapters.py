"""The laws of adapters, over every family of denoisers, every method and every initialisation."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from gen.config.errors import UserError
from gen.diffusion.net import members
from gen.models.layers.magnitude import MPConv, normalise_weights
from gen.training.lora import OWN, LoRA, adapted, adapter_tensors, merged, saved_tensors
from gen.training.optim import parameter_groups
from tests.models.test_families import FAMILIES, digits, inputs, random_net

WAYS = {
    "gaussian": LoRA(2, init="gaussian"),
    "orthogonal": LoRA(2, init="orthogonal"),
    "pissa": LoRA(2, 3.0, init="pissa"),
    "olora": LoRA(2, 3.0, init="olora"),
    "eva": LoRA(2, init="eva"),
    "lora_ga": LoRA(2, init="lora_ga"),
    "lora_ga, rslora": LoRA(4, method="rslora", init="lora_ga"),
    "rslora": LoRA(4, 2.0, method="rslora"),
    "rslora, pissa": LoRA(4, 2.0, method="rslora", init="pissa"),
    "dora": LoRA(2, method="dora"),
    "dora, pissa": LoRA(2, 3.0, method="dora", init="pissa"),
    "dora, olora": LoRA(2, 3.0, method="dora", init="olora"),
    "dora, lora_ga": LoRA(2, method="dora", init="lora_ga"),
    "dora, eva": LoRA(2, method="dora", init="eva"),
    "lokr": LoRA(2, method="lokr"),
    "lokr, factor": LoRA(2, method="lokr", factor=2),
    "miss": LoRA(2, method="miss"),
}


def check(name, lora):
    """At the start the network itself; gradients reach every adapter and nothing else; merged it computes the same."""
    spec = digits(name)
    plain, net = (random_net(spec, dtype=torch.float32) for _ in range(2))
    base = {key: value.clone() for key, value in plain.state_dict().items()}
    x, t, cond = inputs(net, dtype=torch.float32)
    plain(x, t, cond).square().mean().backward()
    reached = {key for key, p in plain.named_parameters() if p.grad is not None and p.grad.any()}
    torch.manual_seed(0)
    adapted(net, lora, losses(net, lora))
    with torch.no_grad():
        torch.testing.assert_close(net(x, t, cond), plain(x, t, cond), rtol=2e-4, atol=2e-5)
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    out = net(x, t, cond)
    out.square().mean().backward()
    trained = {key: p for key, p in net.named_parameters() if p.requires_grad}
    stored = adapter_tensors(net.state_dict())
    assert trained.keys() <= stored.keys() and all(".default" in key for key in trained)
    moved = {key for key, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {key for key in trained if OWN.fullmatch(key)[1] + ".weight" in reached}
    frozen = {plain_name(key): p for key, p in net.state_dict().items() if key not in stored}
    assert all(torch.equal(p, base[key]) for key, p in frozen.items())
    plain.load_state_dict(merged(base, stored, lora))
    with torch.no_grad():
        torch.testing.assert_close(plain(x, t, cond), out.detach(), rtol=2e-3, atol=2e-4)
        assert not torch.allclose(net(x, t, cond), spec_out(base, plain, x, t, cond), rtol=1e-2, atol=1e-3)


def plain_name(key):
    """Of a weight beside which an adapter stands."""
    return key.replace(".base_layer.", ".").replace(".parametrizations.weight.original", ".weight")


def losses(net, lora):
    """Of some batches, by an initialisation that needs them."""
    if not lora.reads_data:
        return ()
    g = torch.Generator().manual_seed(2)
    x = torch.randn(4, 16, *members(net).state_shape, generator=g)
    y = torch.arange(16) % 10
    return [partial(lambda x: net(x, torch.linspace(0.1, 0.9, 16), {"y": y}).square().mean(), one) for one in x]


def spec_out(base, net, x, t, cond):
    net.load_state_dict(base)
    return net(x, t, cond)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_adapters(name):
    check(name, LoRA(2))


@pytest.mark.parametrize("way", WAYS)
def test_every_method_and_initialisation(way):
    check("dit", WAYS[way])


@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_convolutions_that_a_pattern_names(method):
    spec = digits("unet")
    net = random_net(spec)
    names = LoRA(2, targets=("*",)).layers(net)
    convolutions = [name for name in names if isinstance(net.get_submodule(name), nn.Conv2d)]
    assert convolutions
    check("unet", LoRA(2, targets=tuple(convolutions[1:4]), method=method))


def test_eva_takes_the_main_directions_of_the_inputs():
    net = random_net(digits("dit"), dtype=torch.float32)
    name, seen = "blocks.1.attn.qkv", []
    batches = losses(net, WAYS["eva"])
    handle = net.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    for loss in batches:
        loss()
    handle.remove()
    rows = torch.cat([h.flatten(0, -2) for h in seen])
    best = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:2]
    adapted(net, LoRA(2, targets=(name,), init="eva"), batches)
    found = net.get_submodule(name).lora_A["default"].weight
    assert torch.linalg.svdvals((best @ found.T).detach()).min() > 0.98


def test_lora_ga_begins_along_the_gradient():
    """The first step of B A goes down along the gradient of W, as full training does, unlike that of a random A."""
    steepness = {}
    for init in ("default", "lora_ga"):
        net = random_net(digits("dit"), dtype=torch.float32)
        lora = LoRA(4, targets=("blocks.1.attn.qkv",), init=init)
        plain = losses(net, LoRA(4, init="lora_ga"))
        torch.manual_seed(0)
        adapted(net, lora, plain if lora.reads_data else ())
        layer = net.get_submodule("blocks.1.attn.qkv")
        layer.base_layer.weight.requires_grad_(True)
        sum(loss() for loss in plain).backward()
        a, b = (getattr(layer, f"lora_{k}")["default"].weight for k in "AB")
        moved = (b.grad @ a + b @ a.grad).detach()
        whole = layer.base_layer.weight.grad
        steepness[init] = (moved * whole).sum() / moved.norm() / whole.norm()
    assert steepness["lora_ga"] > 0.5 > steepness["default"]


def test_targets_are_patterns_of_names():
    net = random_net(digits("dit"))
    attention = LoRA(targets=("attn.*",)).layers(net)
    assert attention and all(".attn." in name for name in attention)
    assert LoRA(targets=("blocks.[01].attn.*",)).layers(net) == [n for n in attention if n.split(".")[1] in "01"]
    with pytest.raises(
        UserError, match=r"no linear layer or convolution is called 'blocks.0.atn.qkv'. Did you mean 'blo"
    ):
        LoRA(targets=("blocks.0.atn.qkv",)).layers(net)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "miss", "init": "pissa"}, "init = 'pissa' is not for method = 'miss'"),
        ({"factor": 2}, "method = 'lora' has no factor"),
        ({"rank": 3, "init": "orthogonal"}, "rank = 3; allowed: an even rank"),
        ({"method": "miss", "alpha": 2.0}, "'miss' has no alpha"),
        ({"method": "lokr", "dropout": 0.1}, "'lokr' has no dropout"),
        ({"init": "eva_"}, "init"),
    ],
)
def test_what_does_not_go_together_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        LoRA(**given)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_moved_weights_compute_what_peft_computes(method, init):
    """Theirs stand beside the weight W - s B0 A0, ours beside W; trained, merged and as stored for diffusers."""
    torch.manual_seed(0)
    lora, weight, x = LoRA(3, 5.0, method=method, init=init), torch.randn(6, 7), torch.randn(4, 7).double()
    ours, theirs = (nn.Sequential(nn.Linear(7, 6)) for _ in range(2))
    for net in (ours, theirs):
        net[0].weight.data, net[0].bias.data = weight.clone(), torch.ones(6)
    adapted(ours, lora).double()
    inject_adapter_in_model(lora.config(["0"]), theirs)
    begun = [getattr(theirs.double()[0], f"lora_{k}")["default"].weight.data for k in "AB"]
    theirs[0].base_layer.weight.data = weight.double() - lora.scale * begun[1] @ begun[0]  # rounded to float32 before
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if ".default" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
                ours.get_parameter(name).copy_(parameter)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    own = adapter_tensors(ours.state_dict())
    whole = nn.Linear(7, 6).double()
    whole.weight.data, whole.bias.data = merged({"0.weight": weight.double()}, own, lora)["0.weight"], ours[0].bias
    torch.testing.assert_close(whole(x), theirs(x), rtol=1e-12, atol=1e-12)
    stored = saved_tensors(own, lora)
    there = nn.Sequential(nn.Linear(7, 6)).double()
    there[0].weight.data, there[0].bias.data = weight.double(), ours[0].bias.data
    plain = LoraConfig(r=6, lora_alpha=6, use_dora=method == "dora", target_modules=["0"])
    inject_adapter_in_model(plain, there).double()
    there.load_state_dict({key.replace(".weight", ".default.weight"): value for key, value in stored.items()}, False)
    torch.testing.assert_close(there(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_ranks_and_weights_that_an_initialisation_has_not():
    """Where no layer is large enough for lora_ga or eva, all begin as by default."""
    for init in ("lora_ga", "eva"):
        net, lora = random_net(digits("dit"), dtype=torch.float32), LoRA(512, init=init)
        x, t, cond = inputs(net, dtype=torch.float32)
        plain = net(x, t, cond)
        adapted(net, lora, losses(net, lora))
        torch.testing.assert_close(net(x, t, cond), plain)
    with pytest.raises(UserError, match="'pissa' decomposes weights in float32, and these"):
        adapted(digits("dit").build().double(), LoRA(2, init="pissa"))
    with pytest.raises(UserError, match=r"rank = 512, and .* has fewer inputs; allowed: a rank up to"):
        adapted(digits("dit").build(), LoRA(512, method="miss"))


def test_layers_that_normalise_their_weight_stay_normalised():
    """EDM2: the direction of each row is that of W + |W| s B A, whatever W's own lengths are, which stay."""
    torch.manual_seed(0)
    net = MPConv(5, 4, 3, 3).double()
    net.weight.data *= torch.tensor([0.3, 1.0, 2.0, 0.9]).view(-1, 1, 1, 1)
    weight, x, lora = net.weight.data.clone(), torch.randn(2, 5, 6, 6).double(), LoRA(2, 3.0, targets=("*",))
    model = nn.Sequential(net)
    plain = model(x)
    adapted(model, lora)
    assert torch.equal(model(x), plain)
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p.add_(0.1 * torch.randn_like(p))
        normalise_weights(model)
    assert torch.equal(net.weight, weight)
    a, b = (getattr(model[0], f"lora_{k}")["default"].weight.double() for k in "AB")
    unit = weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    rows = unit + lora.scale * (b @ a).view_as(unit)
    rows = rows / rows.flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # DoRA with norms of 1
    wanted = nn.functional.conv2d(x, rows, padding=1)
    torch.testing.assert_close(model(x), wanted, rtol=5e-4, atol=1e-6)  # MPConv adds 1e-4 to lengths of 1
    for given, said in (
        (LoRA(method="dora"), "allowed there: method lora or rslora"),
        (LoRA(dropout=0.1), "no dropout"),
    ):
        with pytest.raises(UserError, match=said):
            adapted(digits("edm2").build(), given)


def test_adapters_learn_at_the_run_s_own_rate():
    """Not at EDM2's, whose weights are of magnitude 1, nor at that of muP's matrices."""
    for spec in (digits("edm2"), replace(digits("dit"), mup_base=16)):
        (group,) = parameter_groups(adapted(spec.build(), LoRA(2)))
        assert group["scale"] == 1.0


@pytest.mark.parametrize("way", WAYS)
def test_adapters_of_a_16_bit_network_learn_in_float32(way):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).bfloat16()
    x = torch.randn(32, 16).bfloat16()
    plain = net(x)
    adapted(net, WAYS[way])
    assert net(x).dtype == torch.bfloat16 and torch.allclose(net(x).float(), plain.float(), rtol=0.02, atol=0.02)
    trained = [p for p in net.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in adapter_tensors(net.state_dict()).values())
    before, optimiser = [p.detach().clone() for p in trained], torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    for _ in range(4):
        optimiser.zero_grad()
        (net(x).float() - 1).square().mean().backward()
        optimiser.step()
    assert all((p != old).float().mean() > 0.99 for p, old in zip(trained, before, strict=True))


def test_a_network_with_adapters_of_others_is_refused():
    net = adapted(nn.Sequential(nn.Linear(4, 4)), LoRA(2))
    with pytest.raises(UserError, match=r"adapters already \(default\): .* pipe.fuse_lora\(\) and pipe.unload_lora"):
        adapted(net, LoRA(2))
