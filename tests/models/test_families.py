"""The laws of every family of denoisers, at the size of its preset "digits"; see gen.diffusion.net for the contract."""

import copy
import json
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import save_file

from gen.config.errors import UserError
from gen.config.spec import build, find, names, override, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import members
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.dit import DiT
from gen.models.layers.patch import unpatchify
from gen.models.layers.wrapper import WrapperSpec
from gen.models.unet import UNet
from gen.pipeline import Pipeline, load
from gen.training.run import Run
from gen.training.state import enable
from gen.training.trainer import train

NEEDS_A_PICTURE = "beside"  # tests/gen/training/objectives/test_restore.py
FAMILIES = [  # text has no channels; those of signals and films, which say their shape: test_other_shapes.py
    name
    for name in names("models")
    if hasattr(find(name, "models"), "channels") and not hasattr(find(name, "models"), "shape")
    if name != NEEDS_A_PICTURE
]
PRESETS = [(name, preset) for name in FAMILIES for preset in find(name, "models").presets]
WRAPPERS = [name for name in FAMILIES if issubclass(find(name, "models"), WrapperSpec)]
LARGE = [  # one of each family in a minute's work, all of them with the slow tests; wrappers' others are DiT's
    pytest.param(*both, marks=() if both == next(p for p in PRESETS if p[0] == both[0]) else pytest.mark.slow)
    for both in PRESETS
    if both[0] not in WRAPPERS or both == next(p for p in PRESETS if p[0] == both[0])
]


def digits(name, **changes):
    return find(name, "models").preset("digits", **changes)


def random_net(spec, seed=0, dtype=torch.float64):
    """A network whose every part matters: what starts at zero does not stay there."""
    torch.manual_seed(seed)
    net = spec.build().to(dtype).eval()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad and weight.std(correction=0) == 0:
                weight.add_(0.1 * torch.randn_like(weight))
    return net


def inputs(net, n=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, *members(net).state_shape, generator=g, dtype=dtype)
    t = 0.05 + 0.9 * torch.rand(n, generator=g, dtype=dtype)
    cond = {"y": torch.randint(0, 10, (n,), generator=g)}
    if length := getattr(net.spec, "text_length", 0):  # captions of some tokens, and none in the last row
        cond["text"] = torch.randn(n, length, net.spec.text_width, generator=g, dtype=dtype)
        cond["text_mask"] = torch.arange(length) < torch.arange(n - 1, -1, -1)[:, None] * 2
    return x, t, cond


def rows_of(cond, rows):
    return {key: value[rows] for key, value in cond.items()}


def count(net):
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_digits_preset_is_as_large_as_the_others(name):
    spec = digits(name)
    assert (spec.size, spec.channels, spec.classes) == (8, 1, 10)
    assert count(spec.build()) == pytest.approx(count(DiT.preset("digits").build()), rel=0.1)
    assert build("models", {"name": name, "preset": "digits"}) == spec
    assert build("models", json.loads(json.dumps(spec_of(spec)))) == spec


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_does_not_depend_on_its_batch(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    together = net(x, t, cond)
    assert together.shape == x.shape and together.std() > 0
    for i in range(len(x)):
        alone = net(x[i : i + 1], t[i : i + 1], rows_of(cond, slice(i, i + 1)))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tap_that_only_looks_changes_no_bit_and_sees_the_time(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    record = FeatureRecorder()
    assert torch.equal(net(x, t, cond, tap=Chain((record, Skip(())))), net(x, t, cond))
    assert record.features["time"].shape[0] == len(x)
    assert any(site.startswith("blocks.") for site in record.features)


@pytest.mark.parametrize("name", FAMILIES)
def test_leaving_out_every_block_changes_the_answer(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    skipped = net(x, t, cond, tap=Skip(("blocks.*",)))
    assert skipped.isfinite().all() and not torch.equal(skipped, net(x, t, cond))


@pytest.mark.parametrize("name", FAMILIES)
def test_time_and_label_matter_and_null_is_another_label(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    out = net(x, t, cond)
    assert not torch.equal(out, net(x, t / 2, cond))
    null = net.null({**cond, "other": x})
    assert null["y"].tolist() == [10] * len(x) and null["other"] is x
    assert not torch.equal(out, net(x, t, null))
    unlabelled = random_net(digits(name, classes=0))
    assert unlabelled.null({}) == {}
    assert unlabelled(x, t, {}).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("null_class", [True, False])
def test_a_pipeline_takes_the_labels_that_the_model_has_and_refuses_all_others(name, null_class):
    spec = digits(name)
    if not null_class:
        inner = getattr(spec, "inner", spec)
        if not hasattr(inner, "null_class"):
            return
        inner = replace(inner, null_class=False)
        spec = replace(spec, inner=inner) if hasattr(spec, "inner") else inner
    net = spec.build().eval()
    pipeline = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10)
    for y in (0, 9, 10):
        if y < 10 + null_class:
            assert pipeline.sample(1, {"y": torch.tensor([y])}, solver="euler", steps=1).x.isfinite().all()
    wrong = [torch.tensor([11 - (not null_class)]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([[1]])]
    for y in wrong:
        with pytest.raises(UserError, match=r"cond\['y'\]"):
            pipeline.sample(1, {"y": y}, solver="euler", steps=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_trainable_weight(name):
    net = random_net(digits(name)).train()
    x, t, cond = inputs(net)
    loss = net(x, t, cond).square().mean()
    if name == "cooperative":  # of its two networks this is the other one
        loss = loss + net(x, t, cond, s=t / 2).square().mean()
    loss.backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)]
    assert not missing


@pytest.mark.parametrize("name", FAMILIES)
def test_it_keeps_the_contract_of_a_network(name):
    """Dtypes are kept, arguments are not written to, null is idempotent, copies and state dicts are the network."""
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    given = x.clone(), t.clone(), cond["y"].clone()
    exact, own = net(x, t, cond), members(net)
    assert isinstance(net, torch.nn.Module) and own.state_shape == tuple(x.shape[1:])
    assert own.image(x).shape == (len(x), net.spec.channels, net.spec.size, net.spec.size)
    assert set(own.lr_scales()) <= {n for n, _ in net.named_parameters()} and own.about == ""
    assert all(torch.equal(a, b) for a, b in zip((x, t, cond["y"]), given, strict=True))
    null = net.null(cond)
    assert torch.equal(net.null(null)["y"], null["y"]) and null["y"].dtype == cond["y"].dtype
    torch.manual_seed(9)
    other = net.spec.build().double().eval()
    other.load_state_dict(net.state_dict())
    for again in (copy.deepcopy(net), other):
        assert torch.equal(again(x, t, cond), exact)
    for dtype, bound in {torch.float64: 0, torch.float32: 1e-4, torch.bfloat16: 0.1}.items():
        assert dtype == torch.float32 or dtype in own.compute_dtypes
        rounded = copy.deepcopy(net).to(dtype)
        out = rounded(x.to(dtype), t if dtype == torch.float64 else t.float(), cond)
        assert out.dtype == dtype and (out.double() - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "reparameterised"])  # adds x
def test_a_fresh_network_is_zero(name):
    net = digits(name).build()
    x, t, cond = inputs(net, dtype=torch.float32)
    record = FeatureRecorder(("blocks.*",))
    assert net(x, t, cond, tap=record).abs().max() == 0
    residuals = [h for site, h in record.features.items() if site.count(".") == 1]
    if name not in ("ddt", "dimsum", "edm2", "pixart"):  # whose blocks are not the identity
        assert residuals and not any(h.any() for h in residuals)


@pytest.mark.parametrize("name", [n for n in FAMILIES if "time_convention" in {f.name for f in fields(digits(n))}])
def test_time_convention_and_time_scale(name):
    spec = digits(name)
    end, (x, t, cond) = getattr(spec, "t_end", 1.0), inputs(spec.build())
    noise, data = (random_net(replace(spec, time_convention=c, time_scale=1.0)) for c in ("noise", "data"))
    torch.testing.assert_close(data(x, end - t, cond), noise(x, t, cond), rtol=1e-8, atol=1e-8)
    scaled = random_net(replace(spec, time_convention="noise", time_scale=8.0))
    torch.testing.assert_close(scaled(x, t / 8, cond), noise(x, t, cond), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["dit", "lightning_dit", "unet"])
def test_learned_sigma_is_dropped_from_the_answer_and_kept_at_the_last_site(name):
    net = random_net(digits(name, learn_sigma=True))
    x, t, cond = inputs(net)
    record = FeatureRecorder(("final",))
    out = net(x, t, cond, tap=record)
    assert record.features["final"].shape == (3, 2, 8, 8) and torch.equal(out, record.features["final"][:, :1])


@pytest.mark.parametrize("name", ["dit", "lightning_dit", "lightnet", "mlp", "reg", "ssm"])
def test_skipping_one_block_equals_a_network_without_it(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    skipped = net(x, t, cond, tap=Skip(("blocks.1",)))
    del net.blocks[1]
    assert torch.equal(skipped, net(x, t, cond))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "ddt"])
def test_it_compiles_to_one_graph(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, t, cond), net(x, t, cond))
    enable(net, "gradient_checkpointing")
    (compiled(x, t, cond) ** 2).mean().backward()
    kept = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    net.zero_grad()
    (net(x, t, cond) ** 2).mean().backward()
    assert all(torch.equal(kept[name], p.grad) for name, p in net.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [*FAMILIES, "text"])
def test_gradient_checkpointing_keeps_less_and_changes_no_bit(name):
    """Kept are what autograd saves outside of blocks, as its hooks see it, and the inputs of the blocks."""
    net = random_net(find("text", "models").preset("nano", width=32, depth=3) if name == "text" else digits(name))
    given = (torch.arange(256).reshape(4, 64) % 200,) if name == "text" else inputs(net)
    whole, kept = gradients(net.train(), given)
    if hasattr(net, "potential"):
        assert not enable(net, "gradient_checkpointing")
        return
    assert enable(net, "gradient_checkpointing")
    again, kept_now = gradients(net, given)
    assert kept_now < 0.6 * kept
    assert whole.keys() == again.keys() and all(torch.equal(whole[key], again[key]) for key in whole)


def gradients(net, given):
    """The values at all sites, the gradients of a loss of them, and how many bytes are kept between the two passes."""
    saved, own = {}, {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(0)
    sites = FeatureRecorder(("hidden.*", "encoder.*", "decoder.*", "blocks.*"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(*given, tap=sites)
    features = {site: value.detach() for site, value in sites.features.items()}
    loss = (out**2).mean() + sum((value**2).mean() for value in sites.features.values())
    names, parameters = zip(*((n, p) for n, p in net.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
    blocks = [site for site in features if site.startswith("blocks.") and site.count(".") == 1]
    kept = sum(size for key, size in saved.items() if key not in own)
    if any(getattr(module, "gradient_checkpointing", False) for module in net.modules()):
        kept += sum(features[site].nbytes for site in blocks)  # as large as the inputs
    return features | dict(zip(names, grads, strict=True)), kept


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wrong", ["size", "times", "label", "target"])
def test_wrong_input_is_one_line(name, wrong):
    net = digits(name).build()
    x, t, cond = inputs(net, dtype=torch.float32)
    s = None
    if wrong == "size":
        x = torch.cat([x, x[..., :1]], -1)
    elif wrong == "times":
        t = t[:2]
    elif wrong == "label":
        cond = {}
    elif name in ("flow_map", "cooperative"):
        s = t[:2]
    else:
        s = t
    with pytest.raises(UserError) as caught:
        net(x, t, cond, s=s)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), LARGE, ids=lambda v: str(v))
def test_every_preset_runs_on_the_meta_device(name, preset):
    spec = find(name, "models").preset(preset)
    with torch.device("meta"):
        net = spec.build()
        shape = members(net).state_shape
        cond = {"y": torch.zeros(2, dtype=torch.int64)} if spec.classes else {}
        assert net(torch.zeros(2, *shape), torch.zeros(2), cond).shape == (2, *shape)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("path", "param"),
    [
        (Flow(), Velocity()),
        (Flow(), Velocity(toward="data")),
        (VP(), Eps()),
        (Flow(), X0()),
        (Trig(), V()),
        (EDM(), EDMPrecond()),
    ],
    ids=lambda v: repr(v),
)
def test_dry_run(name, path, param):
    """Two steps from noise to data, guided towards nothing: every family on every path and parameterisation."""
    net = random_net(digits(name), dtype=torch.float32)
    x, _, cond = inputs(net, 2, torch.float32)
    grid = torch.linspace(0.9 * path.t1, 0, 3, dtype=torch.float64)
    out = integrate(
        Denoiser(net, path, param), path.start(x, grid[0]), grid, build("samplers.solvers", "euler"), cond=cond
    )
    assert out.shape == x.shape and out.isfinite().all()


PUBLISHED_ON = {
    "DiT": "ddpm", "ADM": "ddpm", "SiT": "flow", "REG": "flow", "DDT": "flow", "LightningDiT": "flow",
    "PixArt": "ddpm", "SD3": "flow", "SD3.5": "flow",
    "RAE-DiT": "flow", "DiTDH": "flow", "DiMSUM": "trig", "EDM2": "edm",
}  # fmt: skip
BY_NAME = [
    (name, preset, PUBLISHED_ON[prefix])
    for name, preset in PRESETS
    for prefix in PUBLISHED_ON
    if preset.startswith(f"{prefix}-") and name not in WRAPPERS
]


@pytest.mark.parametrize(("name", "preset", "path"), BY_NAME)
def test_a_published_preset_keeps_its_conventions_when_it_is_built_by_name(name, preset, path):
    """REG's networks get t in [0, 1] as it is; by name they got 1000 t."""
    model = preset.lower() if name == "dit" else {"name": name, "preset": preset}
    assert Run(model=model, path=path).model == find(name, "models").preset(preset)


def test_a_preset_with_changes_and_an_unknown_one():
    assert build("models", {"name": "dit", "preset": "XL/2", "channels": 16}) == replace(
        DiT.preset("XL/2"), channels=16
    )
    with pytest.raises(UserError, match="unknown preset 'XL/3' of DiT"):
        build("models", {"name": "dit", "preset": "XL/3"})


OBLONG = [name for name in FAMILIES if isinstance(getattr(digits(name), "inner", digits(name)), (DiT, UNet))]


@pytest.mark.parametrize("name", OBLONG)
@torch.no_grad()
def test_pictures_may_be_higher_or_wider_than_square(name):
    """A row sees its own row of positions: the left square of a wide picture is a square picture to a local network."""
    wide = override(digits(name), {"inner.size" if name in WRAPPERS else "size": [8, 16]})
    spec = json.loads(json.dumps(spec_of(wide)))
    assert build("models", spec) == wide
    net = random_net(wide)
    x, t, cond = inputs(net)
    state = {"reg": (8 * 16 + 64,), "dfm": (8 * 16 + 4 * 8,)}.get(name, (1, 8, 16))
    assert members(net).state_shape == state == tuple(x.shape[1:])
    out = net(x, t, cond)
    assert out.shape == x.shape and out.isfinite().all()
    for i in range(len(x)):
        alone = net(x[i : i + 1], t[i : i + 1], rows_of(cond, slice(i, i + 1)))
        torch.testing.assert_close(alone[0], out[i], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_positions_of_an_oblong_are_those_of_the_square_around_it():
    """Tokens of the left half, alone in a tall network, have the positions that they have in the square."""
    square, tall = (random_net(digits("dit", size=size)) for size in (8, (8, 4)))
    grid = square.pos_embed.reshape(4, 4, -1)
    assert torch.equal(tall.pos_embed, grid[:, :2].reshape(1, 8, -1))
    image = torch.arange(32.0).reshape(1, 1, 8, 4)
    patches = image.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(1, 8, 4)
    assert torch.equal(unpatchify(patches, 2, 4), image)
    assert digits("dit", size=(8, 8)) == digits("dit")


def test_a_network_of_squares_refuses_other_pictures_before_any_work(tmp_path):
    oblong = {"name": "latents", "path": str(tmp_path / "x.safetensors")}
    save_file({"latents": torch.randn(20, 1, 8, 16)}, tmp_path / "x.safetensors")
    run = Run(
        model={"name": "lightning_dit", "preset": "digits", "classes": 0}, data=oblong, objective="denoise", steps=1
    )
    with pytest.raises(UserError, match=r"takes \[1, 8, 8\]: dit, reg and unet may be higher"):
        train(run, tmp_path / "run", quiet=True)
    changes = {"sample_every": 0, "validate_every": 0, "batch_size": 4, "sampler": {"steps": 2}}
    for model in ("dit", "unet"):
        given = {"name": model, **{k: v for k, v in vars(digits(model)).items() if k not in ("size", "classes")}}
        run = override(Run(model=given, data=oblong, objective="denoise", steps=1), changes)
        assert run.model.size == (8, 16)
        train(run, tmp_path / model, quiet=True)
        assert load(tmp_path / model).sample(2).x.shape == (2, 1, 8, 16)
