"""Small state dicts with the names and shapes of the public repositories, written out from those, not from our nets."""

import numpy as np
import torch

W, DEPTH, HEADS, SIDE, PATCH, CHANNELS, CLASSES = 64, 4, 4, 4, 2, 4, 10


def linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def embedders(width=W, waves=256):
    return {
        **linear("t_embedder.mlp.0", width, waves),
        **linear("t_embedder.mlp.2", width, width),
        "y_embedder.embedding_table.weight": (CLASSES + 1, width),
    }


def patches(name, width, channels=CHANNELS, patch=PATCH):
    return {f"{name}.proj.weight": (width, channels, patch, patch), f"{name}.proj.bias": (width,)}


def gelu(name, width):
    return {**linear(f"{name}.fc1", 4 * width, width), **linear(f"{name}.fc2", width, 4 * width)}


def swiglu(name, width):
    hidden = int(2 / 3 * 4 * width)
    return {**linear(f"{name}.w12", 2 * hidden, width), **linear(f"{name}.w3", width, hidden)}


def split_swiglu(name, width):
    hidden = int(2 * 4 * width / 3)
    return {f"{name}.{w}.weight": (hidden, width) for w in ("w1", "w3")} | {f"{name}.w2.weight": (width, hidden)}


def block(i, width, mlp, *, rms=False, modulation="adaLN_modulation.1", qkv_bias=True, qk_norm=None):
    name = f"blocks.{i}"
    norms = {f"{name}.norm{n}.weight": (width,) for n in (1, 2)} if rms else {}
    gains = {f"{name}.attn.{x}_norm.weight": (qk_norm,) for x in "qk"} if qk_norm else {}
    return {
        **norms,
        **linear(f"{name}.attn.qkv", 3 * width, width, qkv_bias),
        **gains,
        **linear(f"{name}.attn.proj", width, width),
        **mlp(f"{name}.mlp", width),
        **linear(f"{name}.{modulation}", 6 * width, width),
    }


def final(width, out, modulation="adaLN_modulation.1", rms=False):
    return {
        **({"final_layer.norm_final.weight": (width,)} if rms else {}),
        **linear("final_layer.linear", out, width),
        **linear(f"final_layer.{modulation}", 2 * width, width),
    }


def projectors(width=W):
    return {k: v for i in (0, 2, 4) for k, v in linear(f"projectors.0.{i}", 32, width if i == 0 else 32).items()}


def places(width, side, front=0):
    """As numpy computes it in the repositories: w first."""
    grid = np.stack(np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32)), 0)
    w = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    halves = [np.concatenate([f(np.outer(axis.reshape(-1), w)) for f in (np.sin, np.cos)], 1) for axis in grid]
    table = np.concatenate([np.zeros((front, width)), np.concatenate(halves, 1)], 0)
    return torch.from_numpy(table).float()[None]


def turns(dim, side):
    """EVA's rotary tables: rows in the first half of a head's channels, each frequency twice."""
    w = 1.0 / (10000 ** (torch.arange(0, dim // 2, 2).float() / (dim // 2)))
    axis = torch.outer(torch.arange(side) / side * side, w).repeat_interleave(2, 1)
    angles = torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], -1).flatten(0, 1)
    return {"freqs_cos": angles.cos(), "freqs_sin": angles.sin()}


def filled(shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def dit(learn_sigma=True, seed=0):
    """facebookresearch/DiT and willisma/SiT, models.py."""
    out = PATCH**2 * CHANNELS * (2 if learn_sigma else 1)
    blocks = {k: v for i in range(DEPTH) for k, v in block(i, W, gelu).items()}
    shapes = {**patches("x_embedder", W), **embedders(), **blocks, **final(W, out)}
    return {"pos_embed": places(W, SIDE), **filled(shapes, seed)}


def repa(seed=0):
    """sihyun-yu/REPA, models/sit.py."""
    return {**dit(learn_sigma=False, seed=seed), **filled(projectors(), seed + 1)}


def reg(seed=0):
    """Martinser/REG, models/sit.py, with a class token of 12 numbers."""
    more = {**linear("final_layer.linear_cls", 12, W), **linear("cls_projectors2", W, 12), **linear("wg_norm", W, W)}
    more["wg_norm.weight"] = (W,)
    return {**repa(seed), "pos_embed": places(W, SIDE, front=1), **filled(more, seed + 2)}


def lightning_dit(seed=0):
    """hustvl/LightningDiT, models/lightningdit.py, with its released flags."""
    blocks = {k: v for i in range(DEPTH) for k, v in block(i, W, swiglu, rms=True).items()}
    shapes = {**patches("x_embedder", W), **embedders(), **blocks, **final(W, PATCH**2 * CHANNELS, rms=True)}
    tables = {f"feat_rope.{k}": v for k, v in turns(W // HEADS, SIDE).items()}
    return {"pos_embed": places(W, SIDE), **filled(shapes, seed), **tables}


def ddt(seed=0):
    """MCG-NJU/DDT, src/models/denoiser/decoupled_improved_dit.py; three blocks of encoder, one of decoder."""
    settings = {"rms": True, "modulation": "adaLN_modulation.0", "qkv_bias": False, "qk_norm": W // HEADS}
    blocks = {k: v for i in range(DEPTH) for k, v in block(i, W, split_swiglu, **settings).items()}
    numbers = CHANNELS * PATCH**2
    shapes = {**linear("x_embedder.proj", W, numbers), **linear("s_embedder.proj", W, numbers), **embedders()}
    return filled({**shapes, **blocks, **final(W, numbers, modulation="adaLN_modulation.0")}, seed)


def lightning_ckpt(seed=0):
    """What Lightning saves of it, the average beside the weights, and the projector of the training."""
    state = {f"denoiser.{k}": v for k, v in ddt(seed + 7).items()}
    state |= {f"ema_denoiser.{k}": v for k, v in ddt(seed).items()}
    state |= {f"diffusion_trainer.{k}": v for k, v in filled(linear("proj.0", 8, W)).items()}
    return {"epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.4.0", "state_dict": state, "loops": {}}


def rae(seed=0):
    """bytetriper/RAE, src/stage2/models/DDT.py: a head twice as wide, of two blocks, on patches of one place."""
    head, sizes = 2 * W, [W] * 3 + [2 * W] * 2
    blocks = {k: v for i, w in enumerate(sizes) for k, v in block(i, w, swiglu, rms=True).items()}
    shapes = {
        **patches("x_embedder", head, 8, 1),
        **patches("s_embedder", W, 8, 1),
        **linear("s_projector", head, W),
        "t_embedder.W": (256,),
        **embedders(waves=512),
        **blocks,
        **final(head, 8, rms=True),
    }
    tables = {f"enc_feat_rope.{k}": v for k, v in turns(W // HEADS, SIDE).items()}
    tables |= {f"dec_feat_rope.{k}": v for k, v in turns(head // HEADS, SIDE).items()}
    return {"pos_embed": places(W, SIDE), **filled(shapes, seed), **tables}


def edm2(seed=0):
    """NVlabs/edm2, training/networks_edm2.py: two levels of 16 and 32 channels, one block each, attending at 4 x 4."""
    emb = 32

    def conv(name, out, into, *kernel):
        return {f"{name}.weight": (out, into, *kernel)}

    def residual(name, into, out, flavour, attn=False):
        shapes = {
            f"{name}.emb_gain": (),
            **conv(f"{name}.conv_res0", out, out if flavour == "enc" else into, 3, 3),
            **conv(f"{name}.emb_linear", out, emb),
            **conv(f"{name}.conv_res1", out, out, 3, 3),
        }
        shapes |= conv(f"{name}.conv_skip", out, into, 1, 1) if into != out else {}
        attention = {**conv(f"{name}.attn_qkv", 3 * out, out, 1, 1), **conv(f"{name}.attn_proj", out, out, 1, 1)}
        return shapes | (attention if attn else {})

    shapes = {
        "unet.out_gain": (),
        "unet.emb_fourier.freqs": (16,),
        "unet.emb_fourier.phases": (16,),
        **conv("unet.emb_noise", emb, 16),
        **conv("unet.emb_label", emb, CLASSES),
        **conv("unet.enc.8x8_conv", 16, CHANNELS + 1, 3, 3),
        **residual("unet.enc.8x8_block0", 16, 16, "enc"),
        **residual("unet.enc.4x4_down", 16, 16, "enc"),
        **residual("unet.enc.4x4_block0", 16, 32, "enc", attn=True),
        **residual("unet.dec.4x4_in0", 32, 32, "dec", attn=True),
        **residual("unet.dec.4x4_in1", 32, 32, "dec"),
        **residual("unet.dec.4x4_block0", 32 + 32, 32, "dec", attn=True),
        **residual("unet.dec.4x4_block1", 32 + 16, 32, "dec", attn=True),
        **residual("unet.dec.8x8_up", 32, 32, "dec"),
        **residual("unet.dec.8x8_block0", 32 + 16, 16, "dec"),
        **residual("unet.dec.8x8_block1", 16 + 16, 16, "dec"),
        **conv("unet.out_conv", CHANNELS, 16, 3, 3),
        "logvar_fourier.freqs": (8,),
        "logvar_fourier.phases": (8,),
        **conv("logvar_linear", 1, 8),
    }
    return filled(shapes, seed)


def adm(seed=0):
    """openai/guided-diffusion, guided_diffusion/unet.py: 8 x 8 pixels, two levels of one block, the second attends."""
    shapes = {**linear("time_embed.0", 128, 32), **linear("time_embed.2", 128, 128), "label_emb.weight": (CLASSES, 128)}

    def conv(name, out, into, side=3):
        shapes.update({f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)})

    def norm(name, width):
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def block(name, into, out):
        norm(f"{name}.in_layers.0", into)
        conv(f"{name}.in_layers.2", out, into)
        shapes.update(linear(f"{name}.emb_layers.1", 2 * out, 128))
        norm(f"{name}.out_layers.0", out)
        conv(f"{name}.out_layers.3", out, out)
        if into != out:
            conv(f"{name}.skip_connection", out, into, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        shapes.update({f"{name}.qkv.weight": (3 * width, width, 1), f"{name}.qkv.bias": (3 * width,)})
        shapes.update({f"{name}.proj_out.weight": (width, width, 1), f"{name}.proj_out.bias": (width,)})

    conv("input_blocks.0.0", 32, 3)
    for name, into, out in (("1.0", 32, 32), ("2.0", 32, 32), ("3.0", 32, 64)):
        block(f"input_blocks.{name}", into, out)
    block("middle_block.0", 64, 64)
    block("middle_block.2", 64, 64)
    for name, into, out in (("0.0", 128, 64), ("1.0", 96, 64), ("1.2", 64, 64), ("2.0", 96, 32), ("3.0", 64, 32)):
        block(f"output_blocks.{name}", into, out)
    for name in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        attention(name, 64)
    norm("out.0", 32)
    conv("out.2", 6, 32)
    return filled(shapes, seed)


def dimsum(seed=0, condition=False):
    """VinAIResearch/DiMSUM, dimsum/models_dim.py: two Mambas on half of the channels each; a block shared by all."""
    half, state = W // 2, 4
    inner, rank = 2 * half, half // 16

    def mamba(name):
        mixer = {
            "A_log": (inner, state), "D": (inner,), "in_proj.weight": (2 * inner, half), "conv1d.weight": (inner, 1, 4),
            "conv1d.bias": (inner,), "x_proj.weight": (rank + 2 * state, inner), "out_proj.weight": (half, inner),
            **linear("dt_proj", inner, rank), **(linear("cond_proj", inner, W) if condition else {}),
        }  # fmt: skip
        named = {f"{name}.mixer.{key}": shape for key, shape in mixer.items()}
        return {**named, **linear(f"{name}.adaLN_modulation.1", 3 * half, W)}

    def geglu(name):
        return {**linear(f"{name}.w12", 8 * W, W), **linear(f"{name}.w3", W, 4 * W)}

    def layer(name):
        fusion = [linear(f"{name}.proj.qkv{k}", 3 * half, half) for k in (1, 2)]
        parts = [
            mamba(f"{name}.spatial_mamba"),
            mamba(f"{name}.freq_mamba"),
            *fusion,
            linear(f"{name}.proj.proj", W, W),
        ]
        parts += [linear(f"{name}.{key}", out, W) for key, out in (("proj.proj", W), ("adaLN_modulation.1", 3 * W))]
        parts += [geglu(f"{name}.mlp")]
        shapes = {f"{name}.norm.weight": (W,), f"{name}.norm_2.weight": (W,)}
        return shapes | {key: shape for part in parts for key, shape in part.items()}

    shared = {**linear("attn_block.attn.qkv", 3 * W, W), **linear("attn_block.attn.proj", W, W)}
    shared |= {**geglu("attn_block.mlp"), **linear("attn_block.adaLN_modulation.1", 6 * W, W)}
    blocks = {key: shape for i in range(DEPTH) for key, shape in layer(f"blocks.{i}").items()}
    shapes = {**patches("x_embedder", W), **embedders(), **blocks, **shared, **final(W, PATCH**2 * CHANNELS)}
    content = {"pos_embed": places(W, SIDE), **filled(shapes, seed)}
    return {name: value - 2.0 if name.endswith("A_log") else value for name, value in content.items()}
