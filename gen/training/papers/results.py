"""Results that authors report of the recipes of gen.training.published: cited, not measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["RESULTS", "Published"]


@dataclass(frozen=True)
class Published:
    """A result as its authors report it, with what its recipe is checked against.

    Attributes:
        result: the number, and how it was sampled and measured; "" where nothing is published of this recipe.
        by: the publication or repository that has it.
        other: results of the same recipe otherwise trained or sampled.
        checked: whether the number was read there; False for one from memory.
        parameters: by role, as published or counted from the modules that their code builds.
        gmacs: multiply-adds of one evaluation on one sample, in units of 10^9; papers call them GFLOPs.
    """

    result: str
    by: str = ""
    other: str = ""
    checked: bool = True
    parameters: Mapping[str, int] = field(default_factory=dict)
    gmacs: float | None = None


_SIT = 675_111_184  # without learned variances
_REPA = {"net": _SIT, "head": 8_131_328}
_ADM = 295_899_267
_PATCHES = 2_765_633
_DDIT = {"net": 169_627_218}

RESULTS: Mapping[str, Published] = {
    "cifar10_ddpmpp": Published("FID 1.79, 35 evaluations", "EDM, README", parameters={"net": 55_734_147}),
    "cifar10_dit": Published(""),
    "imagenet64_edm2_s": Published(
        "FID 1.58, 63 evaluations", "EDM2, generate_images.py", parameters={"net": 280_209_381}
    ),
    "dit_xl_2": Published(
        "FID 2.27, guided by 1.5",
        "DiT, README",
        other="FID 9.62 unguided (table 2 of the paper)",
        parameters={"net": 675_129_632},
        gmacs=118.64,
    ),
    "sit_xl_2": Published(
        "FID 2.06, guided by 1.5", "SiT, README", parameters={"net": 675_129_632}, gmacs=118.64
    ),
    "repa_xl_2": Published("FID 1.42, guided by 1.8", "REPA, README", parameters=_REPA),
    "reg_xl_2": Published(
        "FID 1.36, guided by 2.3", "REG, README", parameters={"net": 676_886_032, "head": 8_131_328}
    ),
    "dfm_xl_2": Published(
        "FID 18.74 at 512 x 512",
        "snap-research/elit, README",
        other="SiT-XL/2 there 21.82; FID 9.77 in the paper, in FLUX's latents",
        parameters={"net": _SIT + 4_291_204 + 768 * 1152},  # 1024 positions, of which SiT at 256 x 256 has 256
    ),
    "urepa_xl_2": Published(
        "FID 1.48, guided by 1.65",
        "U-REPA, table 5",
        other="FID 1.41 after 2 million updates; 5.4 unguided after 400,000",
        parameters={"net": 946_237_840, "head": 8_131_328},  # published: 954.4 million together
    ),
    "lightningdit_xl_1": Published(
        "FID 2.11, guided by 10",
        "LightningDiT, README",
        other="FID 1.35 after 800 epochs, guided by 6.7",
        parameters={"net": 675_256_736},
    ),
    "ddt_xl_2": Published(
        "FID 1.31, guided by 2",
        "DDT, abstract",
        other="FID 1.26, trained longer (README)",
        parameters={"net": 674_646_352},
    ),
    "rae_dit_dh_xl": Published(
        "FID 1.51, 50 steps",
        "RAE, abstract",
        other="FID 2.16 after 80 epochs (README); 1.13 guided by a smaller model",
        parameters={"net": 838_675_796},
    ),
    "tokenizer_kl_f8": Published(
        "rFID 0.90, PSNR 24.19", "LDM, README", parameters={"net": 83_653_863, "discriminator": _PATCHES}
    ),
    "tokenizer_kl_f4": Published("rFID 0.27, PSNR 27.53", "LDM, README", parameters={"discriminator": _PATCHES}),
    "tokenizer_vq_f4": Published(
        "rFID 0.58, PSNR 27.43", "LDM, README", parameters={"net": 55_322_782, "discriminator": _PATCHES}
    ),
    "tokenizer_va_vae": Published(
        "rFID 0.28, PSNR 27.96",
        "VA-VAE, table of reconstruction",
        parameters={"net": 69_836_067, "discriminator": _PATCHES, "projection": 32_768},
    ),
    "tokenizer_rae": Published(
        "rFID 0.57",
        "RAE, table of noise-augmented decoding",
        other="rFID 0.49 without noise",
        parameters={"net": 415_056_640, "discriminator": 7_386_245},
    ),
    "mdlm_owt": Published(
        "perplexity 22.98",
        "BD3-LM, table 4",
        other="23.21 of half as many tokens (MDLM, table 2)",
        parameters=_DDIT,
    ),
    "mdlm_lm1b": Published("perplexity 31.78", "BD3-LM, table 3", parameters={"net": 139_292_986}),
    "bd3_owt": Published("perplexity 22.27", "BD3-LM, table 4", parameters=_DDIT),
    "llada_8b_sft": Published("", parameters={"net": 8_015_581_184}),
    "fast_dllm_v2_7b": Published(
        "GSM8K 83.7, MATH 61.6", "Fast-dLLM, v2/README", parameters={"net": 7_615_616_512}
    ),
    "dmd2_imagenet64": Published(
        "FID 1.51, 1 evaluation",
        "DMD2, experiments/imagenet/README",
        other="FID 1.28 in two stages",
        parameters={"net": _ADM, "teacher": _ADM},
    ),
    "f_distill_imagenet64": Published(  # the README's section on f-distill, whose table names configs of DMD2
        "FID 1.11, 1 evaluation", "FastGen, methods/distribution_matching/README", other="FID 1.16 in the paper",
        parameters={"net": _ADM, "teacher": _ADM},
    ),
    "scd_cifar10": Published(
        "FID 3.22, 1 evaluation", "FastGen, README", other="FID 3.66 in the paper", parameters={"net": 55_732_739}
    ),
    "meanflow_xl_2": Published("FID 3.43, 1 evaluation", "MeanFlow, abstract", other="FID 3.19 in FastGen's own run"),
}  # fmt: skip
