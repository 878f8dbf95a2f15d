"""The verb `gen bench`: every part runs end to end, files hold what was measured, and what is wrong ends with 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gen.cli import bench, main
from gen.cli.benches import fused as ops
from gen.cli.benches.decode import Decoders, Sizes
from gen.cli.benches.lib.dit import Nets, forward_flops, specification
from gen.cli.benches.lib.plan import read_plan
from gen.config.spec import find
from gen.eval.bench import BenchContext, Call, MachinePeak

GPU = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu.toml"
QUICK = BenchContext(torch.device("cpu"), torch.float32, quick=True)


def call(capsys, *words):
    """Exit code, stdout, stderr."""
    code = main(["bench", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
@pytest.mark.parametrize("part", bench.PARTS)
def test_every_part_runs_end_to_end(tmp_path, capsys, part):
    threads = torch.get_num_threads()
    code, out, err = call(capsys, part, "--quick", "--seconds", "0.02", "--out", tmp_path, "--threads", 1)
    file = json.loads((tmp_path / f"{part}.json").read_text())
    assert (code, err) == (0, ""), [record["gate"] for record in file["cases"]]
    assert torch.get_num_threads() == threads
    assert file["part"] == part and file["dtype"] == "float32" and file["machine"]["threads"] == 1
    assert file["versions"]["torch"] == torch.__version__ and "xformers" in file["versions"]
    assert file["command"].startswith(f"gen bench {part} --device cpu") and file["peak"]["flops"] > 0
    for record in file["cases"]:
        assert record["case"] in out and record["gate"]["ok"] and record["rounds"] == 6
        assert any(call["ours"] and call["ms"] > 0 for call in record["calls"] if "ms" in call)
        assert all("ms" in call or call["unavailable"] for call in record["calls"])
        for ratio in record["ratios"]:
            assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
    assert (tmp_path / "bench.html").read_text().count("<section>") == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [False, True])
def test_the_cases_of_every_part_can_be_listed_and_have_names_of_their_own(device, quick):
    context = BenchContext(torch.device(device), torch.bfloat16, quick)
    for part in bench.PARTS:
        cases = list(find(part, "cli.benches")(context))
        names = [case.name for case in cases]
        assert cases and len(set(names)) == len(names)
        for case in cases:
            calls = [c.name for c in case.calls]
            assert case.calls[0].ours and case.baseline in calls and len(set(calls)) == len(calls)


def test_the_list_measures_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "forward", "--list", "--device", "cuda")
    assert code == 0 and out.splitlines()[:2] == ["forward", "  DiT-XL/2, batch 1"]
    assert not list(tmp_path.iterdir())


def quick_fused(capsys, folder, *words):
    words = ("fused", "--quick", "--seconds", "0.02", "--out", folder, "--only", "swiglu", *words)
    return (*call(capsys, *words)[:2], json.loads((folder / "fused.json").read_text()))


def test_what_is_wrong_ends_with_1_and_is_measured_again(tmp_path, capsys, monkeypatch):
    work = next(work for work in ops.WORKS if work.op is ops.swiglu)
    wrong = Call("wrong", lambda: lambda ab: 1.01 * work.eager(ab))
    right = ops._calls
    monkeypatch.setattr(ops, "_calls", lambda *given: [*right(*given), wrong])
    code, out, file = quick_fused(capsys, tmp_path)
    assert code == 1 and "WRONG, and so not timed: wrong: its error is 0.01" in out and "1 wrong" in out
    assert not any("ms" in call for call in file["cases"][0]["calls"])
    assert "Wrong, and so not timed" in (tmp_path / "bench.html").read_text()
    monkeypatch.setattr(ops, "_calls", right)
    code, out, file = quick_fused(capsys, tmp_path, "--resume")
    assert code == 0 and file["cases"][0]["gate"]["ok"]


def test_what_was_measured_while_others_worked_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_disturbed", lambda context, reason: reason)
    monkeypatch.setattr("gen.eval.quiet.LoadMeter.others", lambda meter: 0.4)
    code, out, file = quick_fused(capsys, tmp_path)
    assert code == 1 and "refused: other processes used 40% of the processors" in out and file["cases"] == []
    monkeypatch.setattr("gen.eval.quiet.LoadMeter.others", lambda meter: 0.0)
    peaks = iter([MachinePeak(1e12, 1e10, "x"), MachinePeak(2e12, 1e10, "x")])
    monkeypatch.setattr("gen.eval.bench.measure_peak", lambda *args, **kwargs: next(peaks))
    code, out, file = quick_fused(capsys, tmp_path)
    assert code == 1 and "the ceiling of products was 1 TFLOP/s before and 2 after" in out and file["cases"] == []
    assert "1 wrong or refused" in out
    assert {"vendor", "family", "flags"} <= file["machine"]["cpu"].keys()


@pytest.mark.slow
def test_resume_leaves_out_what_was_measured_with_the_same_settings(tmp_path, capsys):
    _, _, first = quick_fused(capsys, tmp_path)
    code, out, again = quick_fused(capsys, tmp_path, "--resume")
    assert code == 0 and "measured before" in out and again["cases"] == first["cases"]
    _, out, other = quick_fused(capsys, tmp_path, "--resume", "--seed", 1)
    assert "measured before" not in out and other["cases"][0]["key"] != first["cases"][0]["key"]
    _, out, anew = quick_fused(capsys, tmp_path)
    assert "measured before" not in out and anew["cases"] != first["cases"]


@pytest.mark.slow
def test_a_killed_run_loses_one_case(tmp_path, capsys, monkeypatch):
    """Killed at its third case it has two; resumed and killed at its first, still two."""
    words = ("ssm", "--quick", "--seconds", "0.02", "--out", tmp_path)
    measure, left = bench._key, [2]

    def dying(*given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(*given)

    def names():
        return [record["case"] for record in json.loads((tmp_path / "ssm.json").read_text())["cases"]]

    monkeypatch.setattr(bench, "_key", dying)
    assert call(capsys, *words)[0] == 130
    held = names()
    assert len(held) == 2
    left[0] = 1
    assert call(capsys, *words, "--resume")[0] == 130
    assert names() == held
    left[0] = 100
    code, out, _ = call(capsys, *words, "--resume")
    assert code == 0 and out.count("measured before") == 2 and len(names()) == 5


def test_the_plan_for_a_gpu_names_cases_that_there_are(capsys):
    code, out, _ = call(capsys, "--plan", GPU, "--device", "cuda", "--list")
    lines = out.splitlines()
    assert code == 0 and [line for line in lines if line[0] != " "] == [
        "attention", "sample", "sample", "train", "ssm", "decode", "sample",
    ]  # fmt: skip
    assert lines[1] == "  d 72, N 1024, 16 x 16 heads, forward" and lines[-1].endswith("guided, 1 image")
    few, all_ = ([call.name for call in case.calls] for case in sample_cases())
    assert set(all_) - set(few) == {"compiled", "diffusers compiled"}


def sample_cases():
    cuda = BenchContext(torch.device("cuda"), torch.bfloat16)
    steps = [step for step in read_plan(GPU, quick=False) if step.part == "sample"]
    return [next(steps[i].cases(cuda)) for i in (0, -1)]


@pytest.mark.slow
def test_the_steps_of_a_plan_share_a_part_s_file_and_are_not_done_twice(tmp_path, capsys):
    plan, words = tmp_path / "plan.toml", ("--quick", "--seconds", "0.001", "--out", tmp_path)
    plan.write_text("[[stage]]")
    assert "a plan has tables [[step]] and nothing else, it has stage" in call(capsys, "--plan", plan)[2]
    plan.write_text('[[step]]\npart = "vocabulary"\nwithout = ["eager"]\n')
    one = ("vocabulary", *words, "--only", "temperature 0", "--resume")
    call(capsys, *one)
    code, out, _ = call(capsys, "--plan", plan, *words)
    assert code == 0 and "measured before" not in out  # with fewer calls it is another case
    assert call(capsys, "--plan", plan, *words)[1].count("measured before") == 3
    assert "measured before" not in call(capsys, *one)[1]
    file = json.loads((tmp_path / "vocabulary.json").read_text())
    assert [len(record["calls"]) for record in file["cases"]] == [2, 1, 1]


@pytest.mark.slow
def test_the_plan_for_a_gpu_can_be_rehearsed_on_a_cpu(tmp_path, capsys):
    code, _, err = call(capsys, "--plan", GPU, "--quick", "--seconds", "0.02", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert {file.stem for file in tmp_path.glob("*.json")} == {"attention", "sample", "train", "ssm", "decode"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["atention"], "unknown part 'atention'. Did you mean 'attention'? Allowed: attention, decode, forward"),
        (["fused", "--dtype", "float23"], "argument --dtype: invalid choice: 'float23'"),
        (["fused", "--threads", "0"], "--threads 0, --seconds 4.0: at least 1, and above 0"),
        (["fused", "--seconds", "0"], "--seconds 0.0: at least 1, and above 0"),
        (["fused", "--list", "--threads", "0"], "--threads 0, --seconds 4.0: at least 1, and above 0"),
        (["fused", "--seed", "-1"], "--seed -1: it must be in 0 .. 2^63 - 1"),
        (["fused", "ssm", "--only", "swigul"], "--only 'swigul': no case of fused, ssm has this in its name"),
        (["fused", "--out", "/dev/null"], "--out /dev/null: it cannot be created"),
        (["fused", "--plan", str(GPU)], "--plan says what is measured: give no part and no --only with it"),
        (["fused", "--device", "cdua"], "--device cdua"),
        (["fused", "--quikc"], "unknown option '--quikc' of gen bench. Did you mean '--quick'?"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(capsys, words, message):
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1, "cases": [{}]}'])
def test_a_folder_with_other_files_is_refused_before_any_work(tmp_path, capsys, content):
    (tmp_path / "ssm.json").write_text(content)
    code, out, err = call(capsys, "fused", "--quick", "--out", tmp_path)
    assert (code, out) == (2, "") and "ssm.json is no" in err


def test_both_decoders_write_the_same_after_prompts_of_any_length():
    """In float64, with blocks that neither prompts nor texts fill, of a network that often predicts the mask."""
    bench = Decoders(BenchContext(torch.device("cpu"), torch.float32), Sizes(1, 16, 30, width=64, depth=1, block=16))
    for weight in bench.wide.get_submodule("head").parameters():
        weight.data[bench.wide.mask_token_id] *= 3
    ours, theirs = bench.exact(None), bench.one_by_one(bench.wide)
    for length in (3, 11, 14, 16):
        prompt = torch.randint(256, (length,), generator=torch.Generator().manual_seed(3))
        assert torch.equal(ours(prompt), theirs(prompt)), length


def test_work_is_counted_as_pytorch_counts_it():
    """Products of a forward; on a CPU PyTorch does not count its own attention, which is 4 N^2 d a head."""
    nets = Nets(specification("S/2", QUICK), QUICK)
    x, t, y = nets.draw(3, 0)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        nets.net(x, t, {"y": y})
    attention = nets.spec.depth * 4 * 16**2 * nets.spec.width
    assert counted.get_total_flops() / 3 + attention == forward_flops(nets.spec)
    full = {
        size: forward_flops(specification(size, BenchContext(QUICK.device, QUICK.dtype))) for size in ("S/2", "XL/2")
    }
    assert full == pytest.approx({"S/2": 12.11e9, "XL/2": 237.2e9}, rel=1e-3)


@torch.no_grad()
def test_every_part_of_the_network_counts_in_its_output():
    """Else a mistake in one would pass the gate: leaving out a block's attention or MLP changes a tenth and more."""
    nets = Nets(specification("S/2", QUICK), QUICK)
    x, t, y = nets.draw(2, 0)
    whole = nets.net(x, t, {"y": y})
    for part in ("attn", "mlp"):
        changed = nets.net(x, t, {"y": y}, tap=lambda site, f, h, p=part: 0 * h if site == f"blocks.1.{p}" else f(h))
        assert (changed - whole).square().mean().sqrt() > 0.1 * whole.square().mean().sqrt()
