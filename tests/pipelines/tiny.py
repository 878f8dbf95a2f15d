"""Tiny pipelines of diffusers, built in code: one for each family that gen runs, with random weights, on the CPU.

Weights are drawn anew, since published initialisations have zero gates, under which a wrong time or condition would not
be seen. Schedulers are of first order, so that a pipeline's own output is that of Euler or DDIM steps.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ROWS, TOKENS, WIDTH, STEPS = 2, 5, 8, 4  # prompts, tokens and width of their embeddings, steps of a call


def tiny(name: str) -> Any:
    """Return a pipeline of a family, the caller's own, without text encoders.

    Args:
        name: one of FAMILIES.
    """
    return copy.deepcopy(_built(name))


def call(name: str) -> dict[str, Any]:
    """Return the arguments of one call of `tiny(name)`: two prompts' embeddings, real guidance, four steps.

    Generators, one for each row, are new each time: ask again for the same images. DiT, which returns no latents,
    returns pixels.
    """
    draw = torch.Generator().manual_seed(7)
    given = {key: _draw(value, draw) for key, value in CALLS[name].items()}
    generators = [torch.Generator().manual_seed(11 + row) for row in range(ROWS)]
    return {"num_inference_steps": STEPS, "output_type": "latent", "generator": generators, **given}


def with_text_encoder(name: str) -> Any:
    """Return `tiny(name)` with tiny text encoders, so that it takes prompts.

    Args:
        name: one of ENCODERS. Other arguments than the prompts are those of `prompted(name)`.
    """
    return copy.deepcopy(_encoded(name))


def prompted(name: str) -> dict[str, Any]:
    """Return the arguments of a call of `with_text_encoder(name)` beside its prompts: size, steps, scale, output."""
    keys = {"height", "width", "num_frames", "guidance_scale", "true_cfg_scale", "use_resolution_binning"}
    given = {key: value for key, value in CALLS[name].items() if key in keys}
    lengths = {} if name in ("sd15", "sdxl") else {"max_sequence_length": 8}
    return {"num_inference_steps": STEPS, "output_type": "latent", **given, **lengths}


def randomise(module: nn.Module, seed: int, std: float = 0.15) -> nn.Module:
    """Draw all parameters of a module from a seed, the scales of norms around 1; return it in evaluation mode."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(0.0, std, generator=draw)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)
    return module.eval()


@functools.cache
def _built(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        pipe = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Rows:
    """A tensor to draw: one row for each prompt, of a shape."""

    def __init__(self, *shape: int):
        self.shape = (ROWS, *shape)


class Ragged:
    """Embeddings of prompts of unlike lengths, as a list."""

    def __init__(self, *lengths: int):
        self.lengths = lengths


class Mask:
    """A mask of embeddings whose second row is shorter."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


def _draw(value: Any, draw: torch.Generator) -> Any:
    if isinstance(value, Rows):
        return torch.randn(value.shape, generator=draw)
    if isinstance(value, Ragged):
        return [torch.randn(length, WIDTH, generator=draw) for length in value.lengths]
    if isinstance(value, Mask):
        mask = torch.ones(ROWS, TOKENS, dtype=value.dtype)
        mask[1, TOKENS - 2 :] = 0
        return mask
    return value


def _autoencoder(channels: int = 4, blocks: int = 2) -> nn.Module:
    """An AutoencoderKL that shrinks by 2 ** (blocks - 1)."""
    import diffusers

    vae = diffusers.AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    return randomise(vae, 1)


def _unet(**options: Any) -> nn.Module:
    import diffusers

    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    )
    return randomise(unet, 2)


def _stable_diffusion(**scheduler: Any) -> Any:
    import diffusers

    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    table = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    return diffusers.StableDiffusionPipeline(
        unet=_unet(),
        vae=_autoencoder(),
        scheduler=diffusers.DDIMScheduler(**table, **scheduler, steps_offset=1),
        requires_safety_checker=False,
        **none,
    )


def _sd15() -> Any:
    return _stable_diffusion(set_alpha_to_one=False)


def _sd21_v() -> Any:
    return _stable_diffusion(prediction_type="v_prediction", timestep_spacing="trailing")


def _sdxl() -> Any:
    import diffusers

    extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return diffusers.StableDiffusionXLPipeline(
        unet=_unet(**extra, projection_class_embeddings_input_dim=6 * 8 + 12),
        vae=_autoencoder(),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
        **none,
    )


def _sd3(channels: int = 4) -> Any:
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        pos_embed_max_size=8,
    )
    none = dict.fromkeys(f"{kind}{i}" for kind in ("text_encoder", "tokenizer") for i in ("", "_2", "_3"))
    return diffusers.StableDiffusion3Pipeline(
        transformer=randomise(transformer, 2),
        vae=_autoencoder(channels),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **none,
    )


def _flux(kind: str = "FluxPipeline") -> Any:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return getattr(diffusers, kind)(
        transformer=randomise(transformer, 2),
        vae=_autoencoder(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        **none,
    )


def _flux2() -> Any:
    import diffusers

    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    vae = diffusers.AutoencoderKLFlux2(
        latent_channels=4,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=16,
    )
    randomise(vae, 1)
    draw = torch.Generator().manual_seed(3)
    vae.bn.running_mean.normal_(0.0, 0.3, generator=draw)
    vae.bn.running_var.uniform_(0.5, 2.0, generator=draw)
    return diffusers.Flux2Pipeline(
        transformer=randomise(transformer, 2),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=None,
        tokenizer=None,
    )


def _pixart() -> Any:
    import diffusers

    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
    )
    return diffusers.PixArtAlphaPipeline(
        transformer=randomise(transformer, 2),
        vae=_autoencoder(),
        scheduler=diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
        text_encoder=None,
        tokenizer=None,
    )


def _sana() -> Any:
    import diffusers

    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=8,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        scaling_factor=0.5,
    )
    return diffusers.SanaPipeline(
        transformer=randomise(transformer, 2),
        vae=randomise(vae, 1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
    )


def _lumina2() -> Any:
    import diffusers

    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=4,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=randomise(transformer, 2),
        vae=_autoencoder(blocks=4),  # the pipeline takes a factor of 8 for granted
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=None,
        tokenizer=None,
    )


def _qwen_image() -> Any:
    import diffusers

    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.7, 1.0, 2.0],
    )
    return diffusers.QwenImagePipeline(
        transformer=randomise(transformer, 2),
        vae=randomise(vae, 1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        text_encoder=None,
        tokenizer=None,
    )


def _z_image() -> Any:
    import diffusers

    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return diffusers.ZImagePipeline(
        transformer=randomise(transformer, 2),
        vae=_autoencoder(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
    )


def _wan_transformer(seed: int) -> nn.Module:
    import diffusers

    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    return randomise(transformer, seed)


def _wan(shift: float = 3.0, **more: Any) -> Any:
    import diffusers

    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.7, 1.0, 2.0],
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )
    return diffusers.WanPipeline(
        transformer=_wan_transformer(2),
        vae=randomise(vae, 1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        text_encoder=None,
        tokenizer=None,
        **more,
    )


def _wan22() -> Any:
    """Two transformers; of four steps the first has two."""
    return _wan(5.0, transformer_2=_wan_transformer(3), boundary_ratio=0.9)


def _hunyuan_video() -> Any:
    import diffusers

    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return diffusers.HunyuanVideoPipeline(
        transformer=randomise(transformer, 2),
        vae=randomise(vae, 1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )


def _ltx() -> Any:
    import diffusers

    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
    )
    randomise(vae, 1)
    vae.latents_mean.copy_(torch.linspace(-0.3, 0.3, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, 8))
    return diffusers.LTXPipeline(
        transformer=randomise(transformer, 2),
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
        ),
        text_encoder=None,
        tokenizer=None,
    )


def _cogvideox() -> Any:
    import diffusers

    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )
    return diffusers.CogVideoXPipeline(
        transformer=randomise(transformer, 2),
        vae=randomise(vae, 1),
        scheduler=diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            clip_sample=False,
        ),
        text_encoder=None,
        tokenizer=None,
    )


def _dit() -> Any:
    import diffusers

    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(transformer=randomise(transformer, 2), vae=_autoencoder(), scheduler=scheduler)


FAMILIES: dict[str, Callable[..., Any]] = {
    "sd15": _sd15,
    "sd21_v": _sd21_v,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "kontext": functools.partial(_flux, "FluxKontextPipeline"),
    "flux2": _flux2,
    "pixart": _pixart,
    "sana": _sana,
    "lumina2": _lumina2,
    "qwen_image": _qwen_image,
    "z_image": _z_image,
    "wan": _wan,
    "wan22": _wan22,
    "hunyuan_video": _hunyuan_video,
    "ltx": _ltx,
    "cogvideox": _cogvideox,
    "dit": _dit,
}

TEXT = {"prompt_embeds": Rows(TOKENS, WIDTH), "negative_prompt_embeds": Rows(TOKENS, WIDTH)}
SMALL, LARGE, VIDEO = ({"height": h, "width": w} for h, w in ((16, 8), (64, 32), (16, 32)))


def _masks(name: str, dtype: torch.dtype = torch.int64) -> dict[str, Any]:
    """Masks of both prompts; the negative one's is whole."""
    return {name: Mask(dtype), f"negative_{name}": torch.ones(ROWS, TOKENS, dtype=dtype)}


def _pooled(width: int) -> dict[str, Any]:
    return {"pooled_prompt_embeds": Rows(width), "negative_pooled_prompt_embeds": Rows(width)}


SCALE, TRUE_SCALE = {"guidance_scale": 3.0}, {"true_cfg_scale": 3.0, "guidance_scale": 2.5}
FREE = {"use_resolution_binning": False, "negative_prompt": None}
CALLS: dict[str, dict[str, Any]] = {
    "sd15": {**TEXT, **SMALL, **SCALE},
    "sd21_v": {**TEXT, **SMALL, **SCALE},
    "sdxl": {**TEXT, **_pooled(12), **SMALL, **SCALE},
    "sd3": {**TEXT, **_pooled(24), **SMALL, **SCALE},
    "flux": {**TEXT, **_pooled(WIDTH), **SMALL, **TRUE_SCALE},
    "kontext": {
        **TEXT,
        **_pooled(WIDTH),
        **SMALL,
        **TRUE_SCALE,
        "image": Rows(4, 8, 4),
        "max_area": 128,
        "_auto_resize": False,
    },
    "flux2": {"prompt_embeds": Rows(TOKENS, WIDTH), **SMALL, "guidance_scale": 2.5},
    "pixart": {**TEXT, **_masks("prompt_attention_mask"), **SMALL, **SCALE, **FREE},
    "sana": {**TEXT, **_masks("prompt_attention_mask"), **LARGE, **SCALE, **FREE},
    "lumina2": {**TEXT, **_masks("prompt_attention_mask"), **LARGE, **SCALE},
    "qwen_image": {**TEXT, **_masks("prompt_embeds_mask"), **SMALL, "true_cfg_scale": 3.0},
    "z_image": {"prompt_embeds": Ragged(5, 3), "negative_prompt_embeds": Ragged(2, 4), **SMALL, "guidance_scale": 2.0},
    "wan": {**TEXT, **VIDEO, **SCALE, "num_frames": 3},
    "wan22": {**TEXT, **VIDEO, **SCALE, "guidance_scale_2": 2.0, "num_frames": 3},
    "hunyuan_video": {
        **TEXT,
        **_pooled(WIDTH),
        **_masks("prompt_attention_mask"),
        **VIDEO,
        **TRUE_SCALE,
        "num_frames": 5,
    },
    "ltx": {**TEXT, **_masks("prompt_attention_mask"), "height": 32, "width": 64, **SCALE, "num_frames": 5},
    "cogvideox": {**TEXT, **VIDEO, **SCALE, "num_frames": 5},
    "dit": {"class_labels": [7, 400], **SCALE, "output_type": "pt"},
}


WORDS = "a an the red blue fox dog bird cat on in of grass snow at night"


def _tokenizer(length: int) -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS.split()]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, **special)


def _clip(width: int, seed: int, projection: int | None = None) -> nn.Module:
    """A CLIP text encoder, projecting or not."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return randomise(kind(config), seed, std=0.3)


def _t5(kind: str = "T5") -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32, d_model=WIDTH, d_kv=4, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=2
    )
    return randomise(getattr(transformers, f"{kind}EncoderModel")(config), 9, std=0.3)


ENCODERS: dict[str, Callable[[], dict[str, nn.Module]]] = {
    "sd15": lambda: {"text_encoder": _clip(WIDTH, 5)},
    "sdxl": lambda: {"text_encoder": _clip(4, 5), "text_encoder_2": _clip(4, 6, 12)},
    "sd3": lambda: {"text_encoder": _clip(4, 5, 12), "text_encoder_2": _clip(4, 6, 12), "text_encoder_3": _t5()},
    "flux": lambda: {"text_encoder": _clip(WIDTH, 5), "text_encoder_2": _t5()},
    "pixart": lambda: {"text_encoder": _t5()},
    "wan": lambda: {"text_encoder": _t5("UMT5")},
}


@functools.cache
def _encoded(name: str) -> Any:
    pipe = tiny(name)
    with torch.random.fork_rng(devices=[]):
        encoders = ENCODERS[name]()
    tokenizers = {key.replace("text_encoder", "tokenizer"): _tokenizer(12) for key in encoders}
    whole = type(pipe)(**{**pipe.components, **encoders, **tokenizers}, **_options(pipe))
    whole.set_progress_bar_config(disable=True)
    return whole


def _options(pipe: Any) -> dict[str, Any]:
    """Settings of a pipeline beside its parts."""
    names = ("requires_safety_checker", "force_zeros_for_empty_prompt", "boundary_ratio", "expand_timesteps")
    return {name: pipe.config[name] for name in names if name in pipe.config}


def relative(a: Tensor, b: Tensor) -> float:
    """Return the relative L2 distance of a from b."""
    return float((a - b).norm() / b.norm())
