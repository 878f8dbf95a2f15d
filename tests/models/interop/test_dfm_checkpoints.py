"""DFM-SiT of snap-research/elit: its files, and its network's forward pass as its code has it."""

import math

import pytest
import torch
from torch.nn import functional as F

import gen
from gen.config.errors import UserError
from gen.config.spec import build
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.interop.weights import Weights
from tests.models.interop import published

FOLDER = "models.interop.public"
WIDTH, SIDE, CLASSES = 64, 8, 10


def state(depth=2, stages=2):
    """Random tensors under the repository's names; patches of 1 and 2."""
    shapes = {"y_embedder.embedding_table.weight": (CLASSES + 1, WIDTH)}
    for i in range(stages):
        shapes |= {
            f"x_embedder.embedders.{i}.proj.weight": (WIDTH, 4, 2**i, 2**i),
            f"x_embedder.embedders.{i}.proj.bias": (WIDTH,),
            f"t_embedder.embedders.{i}.mlp.0.weight": (WIDTH, 256),
            f"t_embedder.embedders.{i}.mlp.0.bias": (WIDTH,),
            f"t_embedder.embedders.{i}.mlp.2.weight": (WIDTH, WIDTH),
            f"t_embedder.embedders.{i}.mlp.2.bias": (WIDTH,),
            f"final_layer.projections.{i}.linear.weight": (4 * 4**i, WIDTH),
            f"final_layer.projections.{i}.linear.bias": (4 * 4**i,),
            f"final_layer.projections.{i}.adaLN_modulation.1.weight": (2 * WIDTH, WIDTH),
            f"final_layer.projections.{i}.adaLN_modulation.1.bias": (2 * WIDTH,),
        }
    for i in range(depth):
        for name, out, into in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes |= {
                f"blocks.{i}.{name}.weight": (out * WIDTH, into * WIDTH),
                f"blocks.{i}.{name}.bias": (out * WIDTH,),
            }
        shapes |= {f"blocks.{i}.adaLN_modulation.1.weight": (6 * WIDTH, WIDTH)}
        shapes |= {f"blocks.{i}.adaLN_modulation.1.bias": (6 * WIDTH,)}
    g = torch.Generator().manual_seed(0)
    made = {name: 0.1 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {**made, "pos_embed": published.places(WIDTH, SIDE // 2)}


def forward(w, xs, t, y, drop, heads=4):
    """Follow models/sit_dfm.py: embeddings summed over stages, SiT's blocks, a final layer for each stage."""

    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def modulated(x, shift, scale):
        return F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    def waves(t):
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128).double() / 128)
        return torch.cat([angles.cos(), angles.sin()], -1)

    h, c = w["pos_embed"], w["y_embedder.embedding_table.weight"][y]
    for i, x in enumerate(xs):
        kernel, bias = (w[f"x_embedder.embedders.{i}.proj.{kind}"] for kind in ("weight", "bias"))
        h = h + F.conv2d(x * drop[i], kernel, bias, stride=2**i).flatten(2).mT
        name = f"t_embedder.embedders.{i}.mlp"
        c = c + linear(f"{name}.2", F.silu(linear(f"{name}.0", waves(t[:, i]))))
    for i in range(2):
        parts = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6, 1)
        q, k, v = linear(f"blocks.{i}.attn.qkv", modulated(h, *parts[:2])).unflatten(-1, (3, heads, -1)).unbind(2)
        a = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2).flatten(2)
        h = h + parts[2][:, None] * linear(f"blocks.{i}.attn.proj", a)
        inner = F.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(h, *parts[3:5])), approximate="tanh")
        h = h + parts[5][:, None] * linear(f"blocks.{i}.mlp.fc2", inner)
    outs = []
    for i in range(2):
        name = f"final_layer.projections.{i}"
        parts = linear(f"{name}.adaLN_modulation.1", F.silu(c)).chunk(2, 1)
        rows = linear(f"{name}.linear", modulated(h, *parts)).reshape(len(h), 4, 4, 2**i, 2**i, 4)
        outs.append(torch.einsum("nhwpqc->nchpwq", rows).reshape(len(h), 4, 4 * 2**i, 4 * 2**i))
    return outs


@torch.no_grad()
def test_a_file_is_imported_whole_and_is_the_same_network(tmp_path):
    made = state()
    beside = {"projectors.0.0.weight": torch.zeros(2)}
    settings = {"num_heads": 4, "path_type": "linear", "prediction": "v"}
    torch.save({"model": made, "ema": {**made, **beside}, "args": settings, "steps": 5}, tmp_path / "dfm.pt")
    done = import_checkpoint(tmp_path / "dfm.pt", {"name": "dfm", "heads": 4}, out=tmp_path / "run")
    assert list(done.dropped) == list(beside) and done.matched == len(made)
    pipeline = gen.load(tmp_path / "run")
    net = pipeline.denoiser.net.double()
    w = {name: value.double() for name, value in made.items()}
    g = torch.Generator().manual_seed(1)
    xs = [torch.randn(3, 4, side, side, generator=g, dtype=torch.float64) for side in (4, 8)]
    y, x = torch.tensor([0, 3, CLASSES]), torch.cat([x.flatten(1) for x in xs], 1)
    for times, drop in (((0.4, 0.7), (1, 1)), ((0.4, 1.0), (1, 0))):
        t = torch.tensor(times, dtype=torch.float64).expand(3, 2)
        wanted = torch.cat([out.flatten(1) * on for out, on in zip(forward(w, xs, t, y, drop), drop, strict=True)], 1)
        speeds = torch.tensor(drop, dtype=torch.float64).expand(3, 2)
        ours = net(x, torch.stack([t, speeds], -1), {"y": y})
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
    sample = gen.load(tmp_path / "run").sample(2, steps=5)
    assert sample.x.shape[0] == 2 and bool(torch.isfinite(sample.x).all())


def test_published_sizes_and_what_is_not_read():
    spec = build("models", "DFM-XL/2")
    with torch.device("meta"):
        tensors = dict(spec.build().state_dict())
    tensors["pos_embed"] = published.places(spec.width, 16)
    run = build(FOLDER, "dfm").read(Weights(tensors, "bare", {}), None).run
    assert run.model == spec and run.path.thresholds == (0.1,)
    guided = build(FOLDER, {"name": "dfm", "scale": 1.5}).read(Weights(tensors, "bare", {}), None).run
    assert guided.sampler.guide.scale == 1.5
    with pytest.raises(UserError, match="more than two stages"):
        build(FOLDER, {"name": "dfm", "heads": 4}).read(Weights(state(stages=3), "bare", {}), None)
    odd = Weights(state(), "bare", {}, settings={"path_type": "cosine"})
    with pytest.raises(UserError, match="allowed: linear"):
        build(FOLDER, {"name": "dfm", "heads": 4}).read(odd, None)
