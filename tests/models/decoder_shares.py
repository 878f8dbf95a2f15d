"""What each process of tests/models/test_shared_decoder.py computes."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.rows import halo_bytes, statistics_bytes
from gen.models.engines.lib.shared_decoder import AllRows, RowConv, RowNorm, share_decoding


class Autoencoder(nn.Module):
    """Something with a decoder: convolutions, group norms, pixels repeated."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2),
            nn.GroupNorm(4, 8),
            nn.SiLU(),
            nn.Conv2d(8, 8, 1),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 8, (3, 5), padding="same"),
            nn.GroupNorm(2, 8, affine=False),
            nn.Conv2d(8, 3, 3, padding=1),
        )


def compared(autoencoder, z):
    """How far pictures are from those of one process, with the bytes counted and foretold, before and afterwards."""
    exact = autoencoder.decoder(z)
    names = [name for name, _ in autoencoder.named_parameters()]
    shared, foretold = (
        share_decoding(autoencoder),
        [exact.nbytes // dist.get_world_size() * (dist.get_world_size() - 1)],
    )
    assert sum(p.numel() for p in shared.parameters()) == sum(p.numel() for p in shared.whole.parameters())

    def count(module, given, out):
        parts, part = shared.rows.parts, shared.rows.part
        if isinstance(module, RowConv):
            foretold.append(halo_bytes(given[0], module.reach, part, parts))
        elif isinstance(module, RowNorm):
            foretold.append(statistics_bytes(given[0], module.norm.num_groups, parts))
        elif isinstance(module, AllRows):
            foretold.append((parts - 1) * given[0].nbytes)

    for module in shared.modules():
        module.register_forward_hook(count)
    ours = autoencoder.decoder(z)
    autoencoder.decoder = shared.whole
    assert names == [name for name, _ in autoencoder.named_parameters()] and torch.equal(autoencoder.decoder(z), exact)
    return {
        "far": (ours - exact).abs().max() / exact.abs().max(),
        "sent": torch.tensor([shared.rows.traffic.sent, sum(foretold)]),
    }


def latents(channels, rows=8):
    return 1 + torch.randn(2, channels, rows, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@torch.no_grad()
def plain():
    torch.manual_seed(0)
    return compared(Autoencoder().double(), latents(3))


@torch.no_grad()
def published():
    """The autoencoders of Stable Diffusion and its small substitute, at small widths; and what is refused."""
    import diffusers

    found = {}
    for name in ("kl", "kl without attention", "tiny"):
        torch.manual_seed(0)
        if name == "tiny":
            widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
            blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (2, 1, 1)}
            net = diffusers.AutoencoderTiny(latent_channels=4, **widths, **blocks)
        else:
            blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
            attention = {"mid_block_add_attention": name == "kl"}
            net = diffusers.AutoencoderKL(block_out_channels=(8, 16, 16), norm_num_groups=4, **blocks, **attention)
        net = net.double().eval()
        found |= {f"{name} {key}": value for key, value in compared(net, latents(4)).items()}
    with pytest.raises(UserError, match=r"^share_decoding: 9 rows of latents do not divide over .* processes$"):
        share_decoding(net)
        net.decoder(latents(4, 9))
    with pytest.raises(UserError, match=r"passes no gradients on"), torch.enable_grad():
        net.decoder(latents(4).requires_grad_())
    return found
