"""Published sizes: parameters of every family's presets, counted on the meta device; and specs that cannot be."""

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import find
from gen.diffusion.alignment import Projector
from gen.models.interop.diffusers_names import to_diffusers

# Everything, fixed tables included; 32 x 32 x 4 latents and 1000 classes but where a family says otherwise.
PARAMETERS = {
    "dit": {  # learned sigma
        "S/2": 32_963_360,
        "S/4": 32_945_024,
        "S/8": 33_148_160,
        "B/2": 130_512_416,
        "B/4": 130_475_648,
        "B/8": 130_881_536,
        "L/2": 458_102_816,
        "L/4": 458_053_760,
        "L/8": 458_594_816,
        "XL/2": 675_129_632,
        "XL/4": 675_074_432,
        "XL/8": 675_683_072,
    },
    "lightning_dit": {
        "XL/1": 675_256_736,
        "XL/2": 675_219_856,
        "B/1": 130_556_192,
        "L/2": 458_120_176,
        "1p0B/1": 1_029_401_120,
        "1p6B/1": 1_631_767_120,
        "RAE-DiT-XL/1": 677_248_384,
    },
    "ddt": {"XL/2": 674_646_352, "L/2": 457_648_144, "B/2": 130_262_800},
    "dit_dh": {"S": 196_455_764, "B": 294_295_892, "L": 621_744_436, "XL": 838_675_796},
    "unet": {
        "ADM-64": 295_904_454,
        "ADM-128": 421_529_606,
        "ADM-256": 553_838_086,
        "ADM-256-uncond": 552_814_086,
        "ADM-512": 558_997_638,
    },
    "edm2": {
        "XS": 124_713_253,
        "S": 280_212_837,
        "M": 497_807_781,
        "L": 777_498_085,
        "XL": 1_119_283_749,
        "XXL": 1_523_164_773,
    },
    "song_unet": {"DDPM++-CIFAR10": 55_733_891 - 9 * 128},  # without the input of augmentation
    "dimsum": {"B/2": 198_547_216, "L/2": 459_916_304, "L/4": 459_818_048, "XL/2": 854_831_248},
}
SIGMA = {"learn_sigma": True}
CHANGED = [  # family, preset, fields changed, parameters
    ("dit", "DiT-S/2", {}, 32_957_200),
    ("dit", "DiT-B/2", {}, 130_500_112),
    ("dit", "DiT-L/2", {}, 458_086_416),
    ("dit", "DiT-XL/2", {}, 675_111_184),
    ("dit", "XL/2", {"qk_norm": True}, 675_111_184 + 28 * 2 * 72),
    *[
        ("lightning_dit", name, {"qk_norm": True}, PARAMETERS["lightning_dit"][name] + gains)
        for name, gains in {"XL/1": 4032, "B/1": 1536, "L/2": 3072, "1p0B/1": 3072, "1p6B/1": 3584}.items()
    ],
    *[("edm2", f"EDM2-{name}", {"uncertainty": 0}, count - 128) for name, count in PARAMETERS["edm2"].items()],
]
TRAINABLE = [
    ("dit", "S/2", SIGMA, 32_865_056),
    ("dit", "B/2", SIGMA, 130_315_808),
    ("dit", "L/2", SIGMA, 457_840_672),
    ("dit", "XL/2", SIGMA, 674_834_720),
    ("dit", "XL/2", {}, 674_816_272),
    ("dit_dh", "XL", {}, 838_380_628),
]
PROJECTED = [  # with REPA's projector
    ("dit", "B/2", 137_845_008),
    ("dit", "L/2", 465_955_600),
    ("dit", "XL/2", 683_242_512),
    ("reg", "B/2", 139_028_496),
    ("reg", "L/2", 467_533_328),
    ("reg", "XL/2", 685_017_360),
]
WRONG = [  # family, fields of its smallest preset changed, part of the message
    ("dit", {"size": 9}, "size 9 must be divisible by patch, 2"),
    ("dit", {"width": 30, "heads": 5}, "width 30 must be divisible by 4"),
    ("dit", {"heads": 5}, "DiT.width 64 must be divisible by heads, 5"),
    ("dit", {"depth": 0}, "depth = 0"),
    ("dit", {"classes": -1}, "classes = -1"),
    ("lightning_dit", {"width": 36, "heads": 6}, "width 36 must be divisible by 4 [*] heads, 24"),
    ("ddt", {"width": 36, "heads": 6}, "width 36 must be divisible by 4 [*] heads, 24"),
    ("ddt", {"decoder": 0}, "decoder = 0"),
    ("dit_dh", {"width": 36, "heads": 6}, "DiTDH.width 36 must be divisible by 4 [*] heads, 24"),
    ("dit_dh", {"head_width": 36, "head_heads": 6}, "head_width 36 must be divisible by 4 [*] head_heads, 24"),
    ("dit_dh", {"head_depth": 0}, "head_depth = 0"),
    ("dit_dh", {"head_width": 16, "channels": 8}, "head_width 16 is less than a token's 32 numbers.*at least 32"),
    ("unet", {"multipliers": ()}, "multipliers"),
    ("unet", {"multipliers": (1, 2, 3, 4, 5)}, "size 8 cannot be halved"),
    ("unet", {"width": 15}, "width 15 must be even"),
    ("unet", {"groups": 3}, "level 0 has 32 channels, not divisible by groups 3"),
    ("unet", {"head_width": 24}, "level 1 has 32 channels, .* head_width 24"),
    ("unet", {"heads": 3}, "heads 3"),
    ("unet", {"dropout": 1.0}, "dropout = 1.0"),
    ("unet", {"blocks": 0}, "blocks = 0"),
    ("song_unet", {"multipliers": (1, 2, 3, 4, 5)}, "size 8 cannot be halved"),
    ("song_unet", {"width": 30}, "width 30 must be a multiple of 4"),
    ("song_unet", {"width": 132}, "of 32 from 128 channels on"),
    ("song_unet", {"filter": (1.0, 2.0, 1.0)}, "an even number of taps"),
    ("edm2", {"multipliers": ()}, "multipliers"),
    ("edm2", {"multipliers": (1, 2, 3, 4, 5)}, "size 8 cannot be halved"),
    ("edm2", {"head_width": 24}, "40 channels, which attend"),
    ("edm2", {"dropout": 1.0}, "dropout = 1.0"),
    ("edm2", {"label_balance": 1.5}, "label_balance = 1.5"),
    ("edm2", {"clip": 0.0}, "clip = 0.0"),
    ("edm2", {"lr_scale": 0.0}, "lr_scale = 0.0"),
    ("edm2", {"uncertainty": -1}, "uncertainty = -1"),
    ("ssm", {"mixer": "s4d", "state": 7}, "must be even"),
    ("lightnet", {"heads": 3}, "must be divisible by heads, 3"),
    ("dimsum", {"levels": 3}, "DiMSUM.levels 3 needs a grid of tokens divisible by 8: 4"),
    ("dimsum", {"fusion_heads": 5}, "must be divisible by 2 [*] fusion_heads, 10"),
    ("dimsum", {"drop_path": 1.0}, "DiMSUM: drop_path = 1.0"),
    ("dimsum", {"t_end": 0.0}, "DiMSUM: t_end = 0.0"),
]


DEFAULTS = {
    "dit": "DiT-S/2",
    "lightning_dit": "XL/1",
    "ddt": "DDT-XL/2",
    "dit_dh": "XL",
    "edm2": "XS",
    "ssm": "S/2",
    "lightnet": "S/2",
    "dimsum": "L/2",
}


def built(family, preset, changes):
    with torch.device("meta"):
        return find(family, "models").preset(preset, **changes).build()


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("family", PARAMETERS)
def test_parameter_counts(family):
    changes = SIGMA if family == "dit" else {}
    counts = {name: count(built(family, name, changes)) for name in PARAMETERS[family]}
    assert counts == PARAMETERS[family]


@pytest.mark.parametrize("family", ["dit", "lightning_dit", "edm2"])
def test_parameter_counts_of_variants(family):
    for _, name, changes, expected in (row for row in CHANGED if row[0] == family):
        assert count(built(family, name, changes)) == expected, (name, changes)
    assert family != "lightning_dit" or count(built(family, "LightningDiT-XL/1", {"qk_norm": True})) == 675_260_768


def test_trainable_parameter_counts():
    for family, name, changes, expected in TRAINABLE:
        net = built(family, name, changes)
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected, (family, name)


def test_with_its_projector_it_has_the_published_number_of_parameters():
    for family, name, expected in PROJECTED:
        net = built(family, name, {})
        with torch.device("meta"):
            projector = Projector(net.spec.width, 768)
        assert count(net) + count(projector) == expected, (family, name)


def test_every_block_of_diffusers_port_embeds_time_and_class_anew():
    state = built("dit", "XL/2", SIGMA).state_dict()
    assert sum(value.numel() for value in to_diffusers(state, 28).values()) == 749_826_464


def test_sizes_of_state_spaces_are_about_those_of_dit():
    for size in ("S/2", "B/2", "L/4", "XL/8"):
        assert count(built("ssm", size, {})) == pytest.approx(count(built("dit", size, {})), rel=0.05)


@pytest.mark.parametrize(("family", "changes", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_specs_fail_in_one_line(family, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        find(family, "models").preset("digits", **changes)
    assert "\n" not in str(caught.value)


def test_defaults_are_published_and_short_names_are_names():
    for family, name in DEFAULTS.items():
        owner = find(family, "models")
        assert owner.preset(name) == owner()
    divisions = [(row["encoder"], row["decoder"]) for name, row in find("ddt", "models").presets.items() if "/" in name]
    assert divisions == [(8, 4), (20, 4), (22, 6)]


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match=r"'DiT-XL/3'.*Did you mean 'DiT-XL/"):
        find("dit", "models").preset("DiT-XL/3")
