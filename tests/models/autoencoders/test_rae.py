"""RAE: published sizes, diffusers' AutoencoderRAE both ways, the authors' files, and the facts of its latents."""

import importlib
import json

import pytest
import torch
from safetensors.torch import load_file

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build
from gen.data.digits import Digits
from gen.data.latents import Latents
from gen.data.lib.latent_store import read_manifest
from gen.diffusion.tap import FeatureRecorder
from gen.models.autoencoders.rae import RAE
from gen.models.encoders.vit import ViT
from gen.models.interop.checkpoints import import_checkpoint
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.reconstruct import Reconstruction
from gen.training.run import Run
from gen.training.trainer import train

diffusers = importlib.import_module("diffusers")

TINY = {
    "encoder_hidden_size": 64, "encoder_num_hidden_layers": 2, "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24, "patch_size": 4,
    "image_size": 16, "encoder_norm_mean": [0.4, 0.5, 0.6], "encoder_norm_std": [0.2, 0.25, 0.3],
}  # fmt: skip
KINDS = {"mae": (16, 64), "dinov2": (14, 56)}  # patch, side of the encoder


def theirs(folder, kind="mae", stated=True, **changes):
    """A random AutoencoderRAE with statistics of every position, saved."""
    torch.manual_seed(0)
    patch, side = KINDS[kind]
    g = torch.Generator().manual_seed(1)
    shape = (64, 4, 4)
    own = {"latents_mean": torch.randn(shape, generator=g), "latents_std": 0.5 + torch.rand(shape, generator=g)}
    sizes = {"encoder_type": kind, "encoder_patch_size": patch, "encoder_input_size": side}
    net = diffusers.AutoencoderRAE(**{**TINY, **sizes, **(own if stated else {}), **changes}).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    net.save_pretrained(folder)
    return net


def test_published_sizes():
    counts = {"ViT-B": (86_237_952, 200), "ViT-L": (303_887_104, 392), "ViT-XL": (415_056_640, 456)}
    for preset, (numbers, tensors) in counts.items():
        with torch.device("meta"):
            decoder = RAE.preset(preset, encoder=ViT(width=768, heads=12, norm="plain")).build().decoder
        assert sum(p.numel() for p in decoder.parameters()) == numbers
        state = decoder.state_dict()
        assert len(state) == tensors and state["decoder_pos_embed"].numel() == 257 * decoder.decoder_norm.weight.numel()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stated", [True, False])
def test_a_folder_of_diffusers_is_the_same_network_here_and_back(tmp_path, kind, stated):
    """Images, latents and statistics, in float64; their latents are normalised, ours are the encoder's tokens."""
    net = theirs(tmp_path / "theirs", kind, stated).double()
    import_checkpoint(tmp_path / "theirs", out=tmp_path / "run")
    ours = build("models.autoencoders", {"name": "trained", "folder": str(tmp_path / "run")}).load().double()
    assert ours.image_range == (0.0, 1.0) and (ours.channels, ours.stride) == (64, 4)
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    mean, std = (value.double() for value in ours.statistics)
    z = net.encode(x).latent
    torch.testing.assert_close((ours.encode(2 * x - 1).mean - mean) / std, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.decode(z * std + mean), 2 * net.decode(z).sample - 1, rtol=1e-6, atol=1e-6)
    assert main(["export", str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "back")]) == 0
    back = diffusers.AutoencoderRAE.from_pretrained(tmp_path / "back").double().eval()
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in net.state_dict().items()
               if not name.startswith("_latents"))  # fmt: skip
    torch.testing.assert_close(back.encode(x).latent, z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back.decode(z).sample, net.decode(z).sample, rtol=1e-6, atol=1e-6)


def authors(net):
    """The decoder of an AutoencoderRAE as the authors store it."""
    names = (("to_q.", "attention.query."), ("to_k.", "attention.key."), ("to_v.", "attention.value."),
             ("to_out.0.", "output.dense."))  # fmt: skip
    state = {"decoder_pos_embed": net.decoder.decoder_pos_embed}
    for name, value in net.decoder.state_dict().items():
        for there, here in names:
            name = name.replace(f"attention.{there}", f"attention.{here}")
        state[name] = value
    return state


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_a_decoder_of_the_authors_with_its_encoder_s_folder_and_statistics(tmp_path, training):
    """model.pt as it is published, or a training's file, whose names have a prefix; stat.pt by its own formula."""
    net = theirs(tmp_path / "theirs", "mae", stated=False)
    net.encoder.layernorm = torch.nn.LayerNorm(64, eps=1e-12)
    net.encoder.save_pretrained(tmp_path / "mae")
    state = authors(net)
    inside = {f"decoder.{name}": value for name, value in state.items()} | {"encoder.norm.bias": torch.zeros(3)}
    content = {"model": {name: value + 1 for name, value in inside.items()}, "ema": inside} if training else state
    torch.save(content, tmp_path / "model.pt")
    g = torch.Generator().manual_seed(2)
    mean, var = torch.randn(64, 4, 4, generator=g), torch.rand(64, 4, 4, generator=g)
    torch.save({"mean": mean, "var": var}, tmp_path / "stat.pt")
    encoder = {"name": "mae", "path": str(tmp_path / "mae"), "grid": 4, "norm": "plain"}
    spec = {"name": "rae_autoencoder", "encoder": encoder, "stats": str(tmp_path / "stat.pt"), "heads": 2}
    done = import_checkpoint(tmp_path / "model.pt", spec, out=tmp_path / "run")
    assert len(done.dropped) == (1 if training else 0) and done.run.model.pixel_mean == (0.485, 0.456, 0.406)
    ours = build("models.autoencoders", {"name": "trained", "folder": str(tmp_path / "run")}).load()
    torch.testing.assert_close(ours.statistics.std, (var + 1e-5).sqrt())
    torch.testing.assert_close(ours.statistics.mean, mean)
    unit = torch.randn(64, 64, 4, 4, generator=g, dtype=torch.float64)
    unit = (unit - unit.mean(0)) / unit.std(0, correction=0)
    latents = unit * var.sqrt() + mean  # latents of exactly these statistics
    normal = (latents - ours.statistics.mean) / ours.statistics.std
    torch.testing.assert_close(normal.mean(0), torch.zeros(64, 4, 4).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(normal.var(0, correction=0), (var / (var + 1e-5)).double(), rtol=1e-5, atol=0)
    tokens = torch.randn(2, 64, 4, 4, generator=g)
    pixels = net.decoder.unpatchify(net.decoder(tokens.flatten(2).mT).logits)  # diffusers' decoder: the reference
    scale, shift = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406)))
    torch.testing.assert_close(ours.decode(tokens), (pixels * scale + shift) * 2 - 1, rtol=1e-4, atol=1e-5)
    z = ours.encode(torch.rand(2, 3, 16, 16) * 2 - 1).mean
    torch.testing.assert_close(z.square().sum(1), torch.full((2, 4, 4), 64.0), rtol=1e-4, atol=1e-3)
    whole = ["export", str(tmp_path / "run"), "--to", "rae_autoencoder", "--out", str(tmp_path / "whole.pt")]
    assert main(whole) == 0
    stored, given = (torch.load(tmp_path / name, weights_only=True) for name in ("whole-stats.pt", "stat.pt"))
    assert torch.equal(stored["mean"], given["mean"]) and float((stored["var"] - given["var"]).abs().max()) < 2e-7
    again = {**spec, "stats": str(tmp_path / "whole-stats.pt")}
    import_checkpoint(tmp_path / "whole.pt", again, out=tmp_path / "again")
    back = build("models.autoencoders", {"name": "trained", "folder": str(tmp_path / "again")}).load()
    assert all(torch.equal(a, b) for a, b in zip(back.statistics, ours.statistics, strict=True))
    spec.pop("stats")
    import_checkpoint(tmp_path / "model.pt", spec, out=tmp_path / "plain")
    to = ["--to", "rae_autoencoder", "--out", str(tmp_path / "back.pt")]
    assert main(["export", str(tmp_path / "plain"), *to]) == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    net = theirs(tmp_path / "theirs", "mae", stated=False)
    torch.save(authors(net), tmp_path / "model.pt")
    encoder = {"name": "vit", "width": 64, "heads": 1, "grid": 4, "norm": "plain"}
    for spec, said in (
        ("rae_autoencoder", "does not hold the encoder: say which"),
        ({"name": "rae_autoencoder", "encoder": {**encoder, "norm": "own"}}, "RAE's tokens come after a plain one"),
        ({"name": "rae_autoencoder", "encoder": encoder}, "number of heads cannot be read off"),
        ({"name": "rae_autoencoder", "encoder": {**encoder, "width": 32}, "heads": 2}, r"dim 64 \(the encoder's 32\)"),
    ):
        with pytest.raises(UserError, match=said):
            import_checkpoint(tmp_path / "model.pt", spec, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"RAE\.statistics 3; allowed: 0, 1 and encoder.grid, 4"):
        RAE(statistics=3)


@torch.no_grad()
def test_a_decoder_that_predicts_nothing_gives_the_mean_pixel_and_training_differs_by_noise_alone():
    encoder = ViT(kind="siglip2", grid=4, patch=4, width=32, depth=1, heads=2, table=16, norm="plain")
    pixels = {"channels": 3, "pixel_mean": (0.485, 0.456, 0.406), "pixel_std": (0.2,)}
    spec = RAE.preset("digits", encoder=encoder, **pixels)
    torch.manual_seed(0)
    net = spec.build().double()
    x, tap = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 2 - 1, FeatureRecorder()
    t, z = torch.zeros(2), net.encode(x).mean
    plain = net.eval()(x, t, {})
    assert torch.equal(net.train()(x, t, {}, tap=tap), plain) and "blocks.1.mlp" in tap.features
    assert not net.encoder.training
    noise = torch.randn(z.shape, dtype=torch.float64)
    torch.testing.assert_close(net(x, t, {"perturbation": 0.8 * noise}), net.decode(z + 0.8 * noise))
    torch.testing.assert_close(z.mean(1), torch.zeros(2, 4, 4, dtype=torch.float64), rtol=0, atol=1e-6)
    for p in net.decoder.decoder_pred.parameters():
        p.zero_()
    expected = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).reshape(3, 1, 1) * 2 - 1
    torch.testing.assert_close(net.decode(z), expected.expand(2, 3, 8, 8), rtol=1e-6, atol=1e-6)
    assert net.decode(z[:, :, ::2, ::2]).shape == (2, 3, 8, 8)  # fewer tokens are resampled to the grid
    with pytest.raises(UserError, match="RAE's pictures are 8 x 8, these 8 x 12: resize them"):
        net.encode(torch.zeros(1, 3, 8, 12, dtype=torch.float64))


def test_digits_from_training_to_standardised_latents(tmp_path):
    """The encoder is not in the checkpoint, gets no gradient, and gen encode's statistics of positions are exact."""
    run = Run(
        model=RAE.preset("digits"), data=Digits(), objective=Reconstruction(), parameterisation="x0", steps=2,
        batch_size=16, sample_every=0, validate_every=0, save_every=2,
    )  # fmt: skip
    train(run, tmp_path / "run")
    spec = {"name": "trained", "folder": str(tmp_path / "run")}
    net = build("models.autoencoders", spec).load()
    assert all(name.startswith("decoder.") for name in net.state_dict())
    out = ["--autoencoder", json.dumps(spec), "--out", str(tmp_path / "latents"), "--dtype", "float32", "--quiet"]
    assert main(["encode", "digits", *out]) == 0
    data = Latents(str(tmp_path / "latents"), standardise="position").open("train")
    x = torch.stack([data[i]["x"] for i in range(len(data))]).double()
    assert x.shape[1:] == (64, 4, 4)
    torch.testing.assert_close(x.mean(0), torch.zeros(64, 4, 4, dtype=torch.float64), rtol=0, atol=2e-6)
    torch.testing.assert_close(x.var(0, correction=0), torch.ones(64, 4, 4, dtype=torch.float64), rtol=1e-5, atol=0)
    about = read_manifest(tmp_path / "latents")["autoencoder"]
    assert (about["class"], about["image_range"]) == ("rae", [0.0, 1.0])  # as decoding compares it
    model = {"name": "dit", "preset": "digits", "channels": 64, "size": 4, "patch": 1, "width": 16, "depth": 1}
    latents = Latents(str(tmp_path / "latents"), standardise="position")
    train(Run(model={**model, "classes": 10}, data=latents, objective=Denoising(), steps=1, batch_size=4,
              sample_every=0, validate_every=0),
          tmp_path / "dit")  # fmt: skip
    pipeline = gen.load(tmp_path / "dit")
    drawn = pipeline.sample(2, steps=1)
    images = pipeline.decoded(drawn, tmp_path / "run").x
    statistics = load_file(tmp_path / "latents" / "statistics" / "position.safetensors")
    z = drawn.x * statistics["var"].sqrt().float() + statistics["mean"].float()
    torch.testing.assert_close(images, net.decode(z).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"kl = 0.1, and latents of RAENet are points"):
        Reconstruction(kl=0.1).roles(net, None)
