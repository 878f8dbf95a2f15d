"""Where the weights of a file are: averages first, under any tag and prefix; what is not clear is asked for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gen.cli import main
from gen.config.errors import UserError
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop import published

RAW, AVERAGE = published.dit(seed=1), published.dit(seed=2)


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def imported(tmp_path, content, **options):
    """The seed of the weights that are imported from a file, and their key."""
    torch.save(content, tmp_path / "a.pt")
    done = import_checkpoint(tmp_path / "a.pt", "dit", out=tmp_path / "out", **options)
    from gen.pipeline import load

    ours = load(tmp_path / "out").denoiser.net.state_dict()
    is_seed = [all(torch.equal(ours[name], value) for name, value in state.items()) for state in (RAW, AVERAGE)]
    assert sum(is_seed) == 1
    return "average" if is_seed[1] else "raw", done.weights


TAGS = (
    "model", "state_dict", "model_state_dict", "net", "network", "module", "denoiser", "transformer", "dit", "params",
    "generator", "weights", "unet", "score_model", "backbone", "diffusion_model", "model_state",
)  # fmt: skip
AVERAGES = (
    "ema", "ema_model", "model_ema", "ema_state_dict", "ema_denoiser", "net_ema", "G_ema", "state_dict_ema", "EMA",
    "averaged", "ema_model_state_dict", "swa_model", "ema_params", "shadow",
)  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_weights_are_found_under_their_tag(tmp_path, tag):
    """Of 17 common ones 16 were refused."""
    assert imported(tmp_path, {tag: RAW, "epoch": 3, "optimizer": {"state": {}}}) == ("raw", tag)


@pytest.mark.parametrize("tag", AVERAGES)
def test_an_average_under_any_name_comes_first(tmp_path, tag):
    content = {"model": RAW, tag: AVERAGE}
    assert imported(tmp_path, content) == ("average", tag)
    (tmp_path / "b").mkdir()
    assert imported(tmp_path / "b", content, weights="model") == ("raw", "model")


def wrapped():
    """Averages as libraries keep them."""
    both = {**prefixed("online_model.", RAW), **prefixed("ema_model.", AVERAGE), "initted": torch.ones(1)}
    return {
        "by decay": {"model": RAW, "ema": {"0.9999": AVERAGE}},
        "by decay, a number": {"model": RAW, "ema": {0.9999: AVERAGE}},
        "with a counter": {"model": RAW, "ema": {**AVERAGE, "step": 5, "decay": 0.999}},
        "with a tensor that counts": {"model": RAW, "ema": {"shadow": AVERAGE, "num_updates": torch.tensor(3)}},
        "as ema-pytorch does": {"model": RAW, "ema": both},
        "as ema-pytorch does, alone": both,
        "flat, beside": {**prefixed("model.", RAW), **prefixed("model_ema.", AVERAGE)},
        "as Lightning does": {"state_dict": {**prefixed("net.", RAW), **prefixed("net_ema.", AVERAGE)}, "loops": {}},
        "with an autoencoder": {
            "state_dict": {**prefixed("ema.", AVERAGE), **prefixed("vae.", {"a.weight": torch.ones(2)})}
        },
    }


@pytest.mark.parametrize("kind", wrapped())
def test_an_average_is_found_as_libraries_keep_it(tmp_path, kind):
    assert imported(tmp_path, wrapped()[kind])[0] == "average"


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "ema_model.", "module.", "_orig_mod.", "model.diffusion_model.", "module._orig_mod.model."],
)
def test_what_all_names_begin_with_is_taken_off(tmp_path, prefix):
    assert imported(tmp_path, prefixed(prefix, RAW))[0] == "raw"


def test_a_key_takes_what_it_names(tmp_path):
    content = {"model": RAW, "ema": {"0.9999": AVERAGE, "0.999": RAW}}
    several = r"several sets of weights: say which with --key, one of ema.0.9999, ema.0.999$"
    with pytest.raises(UserError, match=several):
        imported(tmp_path, content)
    assert imported(tmp_path, content, key="ema.0.9999") == ("average", "ema.0.9999")
    with pytest.raises(UserError, match=r"no weights 'ema.1'; it has model, ema.0.9999, ema.0.999$"):
        import_checkpoint(tmp_path / "a.pt", "dit", key="ema.1", out=tmp_path / "other")


def test_a_key_on_the_command_line(tmp_path, capsys):
    torch.save({"first": RAW, "second": AVERAGE}, tmp_path / "a.pt")
    words = ["import", str(tmp_path / "a.pt"), "--from", "dit", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "say which with --key, one of first, second" in capsys.readouterr().err
    assert main([*words, "--key", "second"]) == 0
    assert "dit, weights second" in capsys.readouterr().out


def dotless(prefix, state):
    """As latent-diffusion's LitEma keeps an average of a part: without dots, with its counters."""
    counters = {"decay": torch.tensor(0.9999), "num_updates": torch.tensor(7)}
    return prefixed(
        "model_ema.", {f"{prefix}{name}".replace(".", ""): value for name, value in state.items()} | counters
    )


def nameless():
    """Averages without names, or without the dots in them, beside weights that have them."""
    trained = [value for name, value in AVERAGE.items() if name != "pos_embed"]
    flat = prefixed("model.diffusion_model.", RAW)
    return {
        "torch_ema": {"model": RAW, "ema": {"decay": 0.9, "num_updates": 3, "shadow_params": list(AVERAGE.values())}},
        "torch_ema, of what is trained": {"model": RAW, "ema": {"decay": 0.9, "shadow_params": trained}},
        "LitEma": {"state_dict": flat | dotless("diffusion_model.", AVERAGE)},
        "LitEma, of the network": prefixed("model.", RAW) | dotless("", AVERAGE),
    }


@pytest.mark.parametrize("kind", nameless())
def test_an_average_without_names_has_those_of_the_weights_beside_it(tmp_path, kind):
    content = nameless()[kind]
    if "trained" in kind:
        content["model"] = RAW | {"pos_embed": AVERAGE["pos_embed"]}
    assert imported(tmp_path, content)[0] == "average"
    (tmp_path / "b").mkdir()
    if "trained" not in kind:
        assert imported(tmp_path / "b", content, weights="model")[0] == "raw"


def unnamed():
    """Averages that are there and cannot be read as the network's weights."""
    fewer = [value for value in AVERAGE.values() if value.ndim == 2][:4]
    return {
        "numbers in a row, not all": {"model": RAW, "ema": {"decay": 0.9, "shadow_params": fewer}},
        "other names": {"model": RAW, "ema": {f"x_{i}": value for i, value in enumerate(AVERAGE.values())}},
    }


@pytest.mark.parametrize("kind", unnamed())
def test_the_raw_weights_are_not_taken_for_an_average_without_names(tmp_path, kind):
    with pytest.raises(UserError, match=r"has an average, .*, whose names are not .*: take the latter with --weights"):
        imported(tmp_path, unnamed()[kind])
    assert imported(tmp_path, unnamed()[kind], weights="model")[0] == "raw"


def test_the_same_weights_under_two_names_are_one(tmp_path):
    assert imported(tmp_path, {"model": RAW, "state_dict": RAW})[0] == "raw"


def test_a_whole_module_is_its_state_dict(tmp_path):
    from gen.pipeline import load

    torch.save(RAW, tmp_path / "b.pt")
    import_checkpoint(tmp_path / "b.pt", "dit", out=tmp_path / "b")
    net: nn.Module = load(tmp_path / "b").denoiser.net
    assert imported(tmp_path, {"epoch": 1, "model": net}) == ("raw", "model")


def test_folders_of_accelerate_and_of_the_hub_are_read(tmp_path):
    state = tmp_path / "step-5"
    state.mkdir()
    save_file(RAW, state / "model.safetensors")
    torch.save({"state": {}}, state / "optimizer.bin")
    (state / "random_states_0.pkl").write_bytes(b"")
    assert import_checkpoint(state, "dit", out=tmp_path / "a").weights == "bare"
    torch.save({"decay": 0.9, "shadow_params": list(AVERAGE.values())}, state / "custom_checkpoint_0.pkl")
    with pytest.raises(UserError, match=r"has an average, custom_checkpoint_0.shadow_params"):
        import_checkpoint(state, "dit", out=tmp_path / "b")
    torch.save(AVERAGE, state / "custom_checkpoint_0.pkl")
    with pytest.raises(UserError, match="one of model, custom_checkpoint_0"):
        import_checkpoint(state, "dit", out=tmp_path / "b")
    assert (
        import_checkpoint(state, "dit", key="custom_checkpoint_0", out=tmp_path / "b").weights == "custom_checkpoint_0"
    )
    hub = tmp_path / "models--a--b"
    (hub / "snapshots").mkdir(parents=True)
    state.rename(hub / "snapshots" / "abc")
    assert import_checkpoint(hub, "dit", key="model", out=tmp_path / "c").weights == "model"
    (hub / "snapshots" / "def").mkdir()
    with pytest.raises(UserError, match="holds 2 snapshots: give one of them"):
        import_checkpoint(hub, "dit", out=tmp_path / "d")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc\n")
    assert import_checkpoint(hub, "dit", key="model", out=tmp_path / "d").weights == "model"


def test_variants_of_a_folder_are_read_if_there_is_one(tmp_path):
    half = {name: value.half() for name, value in RAW.items()}
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert import_checkpoint(tmp_path, "dit", out=tmp_path / "a").matched == len(RAW)
    save_file(half, tmp_path / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(UserError, match=r"bf16.safetensors, .*fp16.safetensors: give one of these files"):
        import_checkpoint(tmp_path, "dit", out=tmp_path / "b")
    save_file(RAW, tmp_path / "diffusion_pytorch_model.safetensors")
    done = import_checkpoint(tmp_path, "dit", out=tmp_path / "b")
    assert set(done.run.model.build().state_dict()) == set(RAW)
