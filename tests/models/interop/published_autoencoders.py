"""Small autoencoders with the names of the public repositories, and what LDM's code makes of them, from its paper."""

import torch
from torch.nn import functional as F


def conv(name, out, into, k=3):
    return {f"{name}.weight": (out, into, k, k), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def res(name, into, out):
    first = {**norm(f"{name}.norm1", into), **conv(f"{name}.conv1", out, into)}
    shortcut = conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {}
    return {**first, **norm(f"{name}.norm2", out), **conv(f"{name}.conv2", out, out), **shortcut}


def attn(name, width):
    parts = [conv(f"{name}.{part}", width, width, 1) for part in ("q", "k", "v", "proj_out")]
    return {key: value for part in [norm(f"{name}.norm", width), *parts] for key, value in part.items()}


def ldm_shapes(width=32, factors=(1, 2, 2), blocks=1, latent=3, attention=(2,), vectors=None):
    """Shapes of LDM's AutoencoderKL, or of its VQModel with so many vectors; VA-VAE's has the same names."""
    widths, last = [width * factor for factor in factors], len(factors) - 1
    shapes, into = conv("encoder.conv_in", width, 3), width
    for i, out in enumerate(widths):
        for j in range(blocks):
            shapes |= res(f"encoder.down.{i}.block.{j}", into, out)
            shapes |= attn(f"encoder.down.{i}.attn.{j}", out) if i in attention else {}
            into = out
        shapes |= conv(f"encoder.down.{i}.downsample.conv", out, out) if i < last else {}
    for side in ("encoder", "decoder"):
        middle = {**res(f"{side}.mid.block_1", into, into), **attn(f"{side}.mid.attn_1", into)}
        shapes |= {**middle, **res(f"{side}.mid.block_2", into, into)}
    shapes |= norm("encoder.norm_out", into)
    shapes |= conv("encoder.conv_out", latent if vectors else 2 * latent, into)
    shapes |= conv("decoder.conv_in", into, latent)
    for i in reversed(range(len(widths))):
        for j in range(blocks + 1):
            shapes |= res(f"decoder.up.{i}.block.{j}", into, widths[i])
            shapes |= attn(f"decoder.up.{i}.attn.{j}", widths[i]) if i in attention else {}
            into = widths[i]
        shapes |= conv(f"decoder.up.{i}.upsample.conv", into, into) if i else {}
    shapes |= {**norm("decoder.norm_out", into), **conv("decoder.conv_out", 3, into)}
    wide = latent if vectors else 2 * latent
    shapes |= {**conv("quant_conv", wide, wide, 1), **conv("post_quant_conv", latent, latent, 1)}
    shapes |= {"quantize.embedding.weight": (vectors, latent)} if vectors else {}
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def ldm(seed=0, **sizes):
    """A state dict of these shapes."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=g) / max(shape[1:].numel(), 1) ** 0.5
        for name, shape in ldm_shapes(**sizes).items()
    }


class LDM:
    """LDM's encoder and decoder, written from its paper's appendix over a state dict: 32 groups, eps 1e-6, SiLU."""

    def __init__(self, state, groups=32):
        self.state, self.groups = {name: value.double() for name, value in state.items()}, groups

    def has(self, name):
        return any(key.startswith(name + ".") for key in self.state)

    def conv(self, name, x, stride=1, padding=0):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride, padding)

    def norm(self, name, x):
        return F.group_norm(x, self.groups, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def res(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if self.has(f"{name}.nin_shortcut") else x)

    def attn(self, name, x):
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")  # [B, C, T]
        weights = torch.softmax(q.mT @ k / q.shape[1] ** 0.5, -1)  # of each query
        return x + self.conv(f"{name}.proj_out", (v @ weights.mT).reshape(x.shape))

    def level(self, name, h):
        for j in range(9):
            h = self.res(f"{name}.block.{j}", h) if self.has(f"{name}.block.{j}") else h
            h = self.attn(f"{name}.attn.{j}", h) if self.has(f"{name}.attn.{j}") else h
        return h

    def middle(self, side, h):
        h = self.attn(f"{side}.mid.attn_1", self.res(f"{side}.mid.block_1", h))
        return self.res(f"{side}.mid.block_2", h)

    def encode(self, x):
        """The moments, or the latents before the codebook."""
        h = self.conv("encoder.conv_in", x, padding=1)
        for i in range(9):
            h = self.level(f"encoder.down.{i}", h)
            if self.has(f"encoder.down.{i}.downsample"):
                h = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
        h = F.silu(self.norm("encoder.norm_out", self.middle("encoder", h)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", h, padding=1))

    def decode(self, z):
        h = self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1)
        h = self.middle("decoder", h)
        for i in reversed(range(9)):
            h = self.level(f"decoder.up.{i}", h)
            if self.has(f"decoder.up.{i}.upsample"):
                h = self.conv(f"decoder.up.{i}.upsample.conv", F.interpolate(h, scale_factor=2.0), padding=1)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", h)), padding=1)
