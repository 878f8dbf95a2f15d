"""What every verb that loads does, seen by Python's audit hooks: no code but installed code, no pickle, no process, no
socket.
"""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gen
from gen.cli import verbs

SMALL = "--model.width 16 --model.depth 2 --model.heads 2 --batch_size 8 --steps 2 --save_every 1 --quiet"
POWERS = json.dumps([{"name": "power", "std": 0.05}, {"name": "power", "std": 0.1}])
LINES = {  # verb: command lines; "{POWERS}" is one word
    "train": [
        f"train digits --out runs/model {SMALL} --keep 100 --ema {{POWERS}}",
        f"train lists --out runs/text {SMALL}",
        "train runs/model --out runs/model --steps 3 --quiet",
        "train runs/model --out runs/again --resume runs/model/checkpoints/step-0000001 --steps 2 --quiet",
        "train runs/model --out runs/init --init runs/model --steps 1 --quiet",
        "train runs/model --print-config",
    ],
    "distill": [
        "distill reflow --teacher runs/model --out runs/reflow --objective.store runs/pairs --objective.pairs 20"
        " --steps 1 --quiet",
        "distill dmd2 --teacher runs/model --out runs/dmd2 --steps 1 --quiet",
        "distill dparallel --teacher runs/text --out runs/dparallel --steps 1 --objective.prompts 40 --quiet"
        " --objective.only_correct false",
    ],
    "restore": ["restore runs/model --operator pool --method.steps 3 --noise 0.1 -n 2 --out restored.png"],
    "sample": ["sample runs/model -n 2 --steps 2", "sample runs/model/checkpoints/step-0000001 -n 2 --out a.npz"],
    "evaluate": ["evaluate runs/model -n 20 --steps 1 --metrics kid,fid"],
    "statistics": [
        "statistics digits --out ref.npz --features kept",
        "evaluate runs/model --against ref.npz --extractor digits_cnn --features kept -n 20 --steps 1",
    ],
    "watch": ["watch runs"],
    "leaderboard": ["leaderboard runs/model"],
    "throughput": ["throughput runs/model --steps 1 --batch-sizes 1,2 --seconds 0.01"],
    "arena": [],  # serves a page until it is stopped
    "serve": [],  # likewise
    "decode": ["decode runs/text --prompt 'copy : a b =' --gen-length 4"],
    "search": ["search runs/model --steps 2 --budget 2 --pool 3 -n 2"],
    "pairs": ["pairs --teacher runs/model --out runs/other -n 4 --steps 2 --quiet"],
    "encode": ["encode digits --autoencoder vae --out latents --quiet"],
    "tune": ["tune runs/model --by adadagrad --by.every 1 --steps 2 --out tuned --quiet"],
    "ema": ["ema runs/model --std 0.08 --out average"],
    "merge": [
        "train runs/model --out runs/adapted --init runs/model --lora.rank 2 --steps 1 --quiet",
        "merge runs/model --adapters runs/adapted --out runs/merged",
    ],
    "export": ["export runs/model --to diffusers --out exported --patched"],
    "push": ["push runs/model owner/name --license mit"],  # without --yes
    "import": ["import exported --out imported", "import weights.pt --from dit --out other"],
    "list": ["list", "list heun"],
    "doctor": [],  # its work is to start programs and to ask for packages
    "quickstart": [],  # a page of the others
    "bench": [],  # reads no folder but its own
    "bench-decode": [],
    "lm-eval": [],  # the harness is code of others
    "perplexity": ["perplexity runs/text -n 2 --masks 2"],
}
AUDITED = """
import contextlib, io, json, sys, sysconfig, traceback
root, words = sys.argv[1], json.loads(sys.argv[2])
sys.path.append(root)
roots = (root, sys.prefix, sys.base_prefix, *map(sysconfig.get_path, ("stdlib", "platlib", "purelib")))
seen = []
GIT = ["git", "-C", root + "/gen/training", "describe", "--always", "--dirty"]
def hook(event, args):
    if event == "exec":
        file = args[0].co_filename
        if not file.startswith(("<", *roots)):
            seen.append(f"exec {file}")
    elif event == "ctypes.dlopen" and str(args[0]).startswith(("None", "libc.so", *roots)):
        pass  # as torch does
    elif event == "subprocess.Popen" and list(args[1]) == GIT:
        pass  # the commit of this code, in its own folder
    elif event == "socket.bind" and args[1] == ("::1", 0):
        pass  # as urllib3 does, to see whether there is IPv6, when diffusers imports it
    elif event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn",
                   "socket.connect", "socket.getaddrinfo", "socket.bind", "ctypes.dlopen"):
        frames = "".join(traceback.format_list(traceback.extract_stack(limit=12)[:-1]))
        seen.append(f"{event} {str(args)[:200]}\\n{frames}")
sys.addaudithook(hook)
from gen.cli import main
for line in words:
    seen.append(None)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(line)
    if code != (2 if "weights.pt" in line else 0):  # no model, but read
        print("FAILED", code, line, said.getvalue())
    found = seen[seen.index(None) + 1:]
    for what in found:
        print("SEEN", line, what)
    seen.clear()
"""


def test_every_verb_is_listed():
    assert set(LINES) == set(verbs())


@pytest.mark.slow
def test_no_verb_runs_anything_but_installed_code(tmp_path):
    trap = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + ' ')\n"
    for name in ("torch", "safetensors", "xformers", "lpips", "usercustomize", "tokenizers", "triton", "gen", "eval"):
        (tmp_path / f"{name}.py").write_text(trap)
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "weights.pt")
    diffusers = importlib.import_module("diffusers")
    kinds = {"block_out_channels": (4,), "norm_num_groups": 2, "latent_channels": 1}
    diffusers.AutoencoderKL(in_channels=1, out_channels=1, **kinds).save_pretrained(tmp_path / "vae")
    lines = [[POWERS if w == "{POWERS}" else w for w in shlex.split(line)] for own in LINES.values() for line in own]
    (tmp_path / "audited.py").write_text(AUDITED)
    root = str(Path(gen.__file__).parents[1])
    command = [sys.executable, "-P", "audited.py", root, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
