"""Folders of MDLM and BD3-LM, in small: the logits of a module of the published structure, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import gen
from gen.config.errors import UserError
from gen.models.interop.checkpoints import import_checkpoint

WIDTH, HEADS, LENGTH, VOCAB = 32, 4, 16, 40
CONFIG = {"vocab_size": VOCAB, "model_length": LENGTH, "hidden_dim": WIDTH, "cond_dim": 12, "n_blocks": 2}
CONFIG |= {"n_heads": HEADS, "dropout": 0.1, "time_conditioning": False}
MDLM = {**CONFIG, "architectures": ["MDLM"], "model_type": "mdlm"}
BD3LM = {**CONFIG, "architectures": ["BD3LM"], "model_type": "bd3lm", "block_size": 4, "cross_attn": True,
         "attn_backend": "sdpa", "sampling_eps_min": 0.001, "sampling_eps_max": 0.999, "var_min": True}  # fmt: skip
CONFIGS = {"mdlm": MDLM, "bd3lm": BD3LM}


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, h):
        return F.layer_norm(h, [WIDTH]) * self.weight


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.attn_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attn_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH))
        self.adaLN_modulation = nn.Linear(12, 6 * WIDTH)

    def forward(self, h, c, turns, mask):
        s1, m1, g1, s2, m2, g2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        qkv = self.attn_qkv(self.norm1(h) * (1 + m1) + s1).view(*h.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        cos, sin = turns
        q, k = (torch.cat([a * cos - b * sin, b * cos + a * sin], -1) for a, b in (x.chunk(2, -1) for x in qkv[:2]))
        seen = F.scaled_dot_product_attention(q, k, qkv[2], attn_mask=mask).transpose(1, 2).flatten(2)
        h = h + g1 * self.attn_out(seen)
        return h + g2 * self.mlp(self.norm2(h) * (1 + m2) + s2)


class Published(nn.Module):
    """The backbone under the names of the published files, at time 0."""

    def __init__(self):
        super().__init__()
        self.vocab_embed, self.sigma_map, self.output_layer, self.rotary_emb = (nn.Module() for _ in range(4))
        self.vocab_embed.embedding = nn.Parameter(torch.empty(VOCAB, WIDTH))
        self.sigma_map.mlp = nn.Sequential(nn.Linear(256, 12), nn.SiLU(), nn.Linear(12, 12))
        self.rotary_emb.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, 8, 2).float() / 8))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.output_layer.norm_final = Norm()
        self.output_layer.linear = nn.Linear(WIDTH, VOCAB)
        self.output_layer.adaLN_modulation = nn.Linear(12, 2 * WIDTH)

    def forward(self, tokens, mask=None, length=None):
        n = tokens.shape[1]
        angles = (torch.arange(n) % (length or n))[:, None] * self.rotary_emb.inv_freq
        waves = torch.cat([torch.ones(128), torch.zeros(128)]).to(angles)  # cos and sin of time 0
        c, h = F.silu(self.sigma_map.mlp(waves))[None], self.vocab_embed.embedding[tokens]
        for block in self.blocks:
            h = block(h, c, (angles.cos(), angles.sin()), mask)
        shift, scale = self.output_layer.adaLN_modulation(c)[:, None].chunk(2, -1)
        return self.output_layer.linear(self.output_layer.norm_final(h) * (1 + scale) + shift)


def folder(path, kind, changes=None):
    torch.manual_seed(0)
    net = Published()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    state = {f"backbone.{name}": value for name, value in net.state_dict().items()}
    state |= {f"sampling_eps_{end}": torch.tensor(0.5) for end in ("min", "max")} if kind == "bd3lm" else {}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIGS[kind] | (changes or {})))
    (path / "modeling.py").write_text("raise SystemExit('code of the folder was run')")
    save_file(state, path / "model.safetensors")
    return net.eval()


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_the_published_structure(tmp_path, kind):
    net, tokens = folder(tmp_path / kind, kind), torch.randint(0, VOCAB, (3, LENGTH))
    done = import_checkpoint(tmp_path / kind, out=tmp_path / "run")
    ours = gen.load(tmp_path / "run")
    blocks = torch.arange(LENGTH) // 4
    seen = blocks <= blocks[:, None] if kind == "bd3lm" else None
    torch.testing.assert_close(ours.net(tokens), net(tokens, seen), rtol=1e-5, atol=1e-5)
    spec = ours.net.spec
    assert (done.origin, type(spec).__name__, spec.mask_token_id) == (kind, "DDiT", VOCAB - 1)
    assert set(done.dropped) == {"backbone.rotary_emb.inv_freq"} | (
        {"sampling_eps_min", "sampling_eps_max"} if kind == "bd3lm" else set()
    )
    made = ours.generate([[1, 2, 3], [4]], 12, stopping_rules=(), seed=1)
    assert (
        made.tokens == 24
        and made.texts == ours.generate([[1, 2, 3], [4]], 12, stopping_rules=(), kv_plan=None, seed=1).texts
    )
    if kind == "bd3lm":  # as it is trained: a noisy text before the clean one
        noisy = torch.where(torch.rand(3, LENGTH) < 0.5, VOCAB - 1, tokens)
        both, half, block = torch.cat([noisy, tokens], 1), torch.arange(2 * LENGTH) // LENGTH, blocks.repeat(2)
        inner = (half == half[:, None]) & (block == block[:, None])
        clean = (half == 1) & torch.where(half[:, None] == 1, block <= block[:, None], block < block[:, None])
        expected = net(both, inner | clean, LENGTH)[:, :LENGTH]
        torch.testing.assert_close(ours.net(both, block_diffusion=4)[:, :LENGTH], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_one_block_is_no_block(tmp_path):
    tokens = torch.randint(0, VOCAB, (2, LENGTH))
    for name, changes in (("all", {"cross_attn": False}), ("one", {"block_size": LENGTH})):
        net = folder(tmp_path / name, "bd3lm", changes)
        import_checkpoint(tmp_path / name, out=tmp_path / f"{name}-run")
        ours = gen.load(tmp_path / f"{name}-run")
        assert ours.net.block_size is None and ours.decoding.kv_plan is None
        torch.testing.assert_close(ours.net(tokens), net(tokens), rtol=1e-5, atol=1e-5)


def test_published_ids_and_settings_that_are_none_of_theirs(tmp_path):
    folder(tmp_path / "ids", "mdlm", {"eos_token_id": 7})
    done = import_checkpoint(tmp_path / "ids", {"name": "mdlm", "mask_token_id": 3}, out=tmp_path / "run")
    assert (done.run.model.mask_token_id, done.run.model.eos_token_ids) == (3, (7,))
    wrong = [("mdlm", {"time_conditioning": True}), ("bd3lm", {"adaln": False}), ("bd3lm", {"causal": True}),
             ("bd3lm", {"block_size": None}), ("mdlm", {"n_blocks": 3}), ("mdlm", {"cond_dim": 8})]  # fmt: skip
    for i, (kind, changes) in enumerate(wrong):
        folder(tmp_path / str(i), kind, changes)
        with pytest.raises(UserError) as caught:
            import_checkpoint(tmp_path / str(i), out=tmp_path / "other")
        assert "\n" not in str(caught.value) and not (tmp_path / "other").exists()
