"""Models on the hub: a folder stands for it; names, revisions, what is fetched, and what is refused in one line."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gen
from gen.cli import main
from gen.config import checkpoints, hub
from gen.config.errors import MissingDependency, UserError
from gen.config.spec import override
from gen.eval.record import to_json
from gen.training.recipes.digits import digits
from tests.eval.test_record import made

FIRST, SECOND = "a" * 40, "b" * 40


class Hub:
    """A folder that stands for the hub: root/owner/name/commit; `main` is the last commit."""

    def __init__(self, root):
        self.root, self.calls = root, []

    def HfApi(self):
        return self

    def model_info(self, repository, *, revision):
        self.calls.append("model_info")
        commits = sorted(path.name for path in (self.root / repository).iterdir())
        if revision not in ("main", *commits):
            raise RuntimeError(f"404 Client Error.\n\nRevision Not Found for {repository}, {revision}")
        sha = commits[-1] if revision == "main" else revision
        files = [path for path in (self.root / repository / sha).rglob("*") if path.is_file()]
        names = [SimpleNamespace(rfilename=str(path.relative_to(self.root / repository / sha))) for path in files]
        return SimpleNamespace(sha=sha, siblings=names)

    def hf_hub_download(self, repository, name, *, revision, local_dir):
        self.calls.append(name)
        Path(local_dir, name).parent.mkdir(exist_ok=True)
        return shutil.copyfile(self.root / repository / revision / name, Path(local_dir, name))

    def create_repo(self, repository, *, private, exist_ok):
        self.calls.append("private" if private else "public")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.root / repo_id / FIRST)
        return SimpleNamespace(oid=FIRST)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "_hub", lambda: found)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    small = {"model.width": 16, "model.depth": 1, "model.heads": 2, "steps": 2, "batch_size": 8}
    folder = tmp_path_factory.mktemp("hub") / "run"
    gen.train(override(digits(), small), folder, quiet=True)
    return folder


def test_a_model_goes_to_the_hub_and_comes_back(trained, stand_in, capsys):
    sha256 = checkpoints.manifest_of(trained)["sha256"]
    (trained / "eval").mkdir(exist_ok=True)
    for name, checkpoint in (("ours", {"sha256": sha256}), ("other", {"sha256": "0"})):
        record = to_json(made(name, checkpoint=checkpoint))
        (trained / "eval" / f"{name}.json").write_text(json.dumps(record))
    words = ["push", str(trained), "owner/name", "--license", "mit"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert 'license: "mit"' in said and "bytes  manifest.json" in said and "Nothing was uploaded" in said
    assert "bytes  eval/ours.json" in said and "eval/other.json" not in said and "| ours" in said
    assert stand_in.calls == [] and not stand_in.root.exists()
    assert main([*words, "--yes"]) == 0
    assert capsys.readouterr().out == f"uploaded: hf:owner/name@{FIRST}\n" and stand_in.calls == ["private"]

    there = stand_in.root / "owner/name" / FIRST
    (there / "weights.bin").write_bytes(b"pickled")
    (there / "code.py").write_text("raise SystemExit")
    model = gen.load("hf:owner/name@main")
    assert f"is commit {FIRST}: hf:owner/name@{FIRST} is always" in capsys.readouterr().err
    assert torch.equal(model.sample(2, steps=2).x, gen.load(trained).sample(2, steps=2).x)
    assert model.name == f"owner--name@{FIRST[:12]}"
    files = sorted(path.relative_to(model.folder) for path in model.folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".safetensors", ".json"} and Path("eval/ours.json") in files
    assert not list(model.folder.parent.glob(".*")) and model.info["sha256"] == sha256

    stand_in.calls.clear()  # a commit needs no network the second time
    assert main(["sample", f"hf:owner/name@{FIRST}", "-n", "1", "--steps", "1", "--out", str(trained / "a.npz")]) == 0
    out = ["--out", str(trained.parent / "student"), "--steps", "1", "--objective.pairs", "20", "--quiet"]
    assert main(["distill", "reflow", f"--teacher=hf:owner/name@{FIRST}", *out]) == 0
    assert stand_in.calls == []


def test_what_is_no_name_or_no_model_is_one_line_and_leaves_nothing(trained, stand_in, monkeypatch, tmp_path):
    commit = stand_in.root / "owner/name" / SECOND
    hub.write_weights(checkpoints.locate(trained), commit)
    (stand_in.root / "owner/empty" / FIRST).mkdir(parents=True)
    for name, said in {
        "hf:owner/name": "names no revision, and what a branch holds may change: give hf:owner/name@COMMIT",
        "hf:owner/name@": "names no revision",
        "hf:owner@main": "'owner' is no name on the hub; allowed: owner/name",
        "hf:../name@main": "is no name on the hub",
        "hf:owner/name@other": r"cannot be reached \(RuntimeError: '404 Client Error. Revision Not Found for",
        f"hf:owner/name@{FIRST}": "cannot be reached .* fetched before needs no network: hf:owner/name@ and its 40",
        "hf:owner/empty@main": "holds no model of gen's",
        "hf:owner/none@main": "cannot be reached",
    }.items():
        with pytest.raises(UserError, match=said) as caught:
            gen.load(name)
        assert "\n" not in str(caught.value)
    weights = next(commit.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        gen.load("hf:owner/name@main")
    weights.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        gen.load("hf:owner/name@main")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependency, match=r"pip install 'gen-diffusion\[hub\]'"):
        gen.load(f"hf:owner/name@{FIRST}")


class Server(BaseHTTPRequestHandler):
    """The few calls of the hub's protocol that the client makes, on a folder that holds one commit."""

    def do_GET(self):
        owner, name, *rest = self.path.split("?")[0].removeprefix("/api/models").strip("/").split("/")
        if (owner, name) != ("owner", "name"):
            self.say(404, {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["resolve"]:
            file = self.server.folder.joinpath(*rest[2:])
            held = file.read_bytes() if file.is_file() else None
            code = 404 if held is None else 200
            etag = hashlib.sha256(held or b"").hexdigest()
            self.say(code, {"X-Error-Code": "EntryNotFound"} if held is None else {"ETag": etag}, held or b"")
        else:
            names = [str(p.relative_to(self.server.folder)) for p in self.server.folder.rglob("*") if p.is_file()]
            siblings = [{"rfilename": name} for name in names]
            about = {"id": "owner/name", "sha": FIRST, "siblings": siblings, "private": True}
            self.say(200, {}, json.dumps(about).encode())

    do_HEAD = do_GET

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        url = f"http://{self.headers['Host']}/owner/name"
        answer = {"url": url, "name": "owner/name", "commitUrl": f"{url}/commit/{FIRST}", "commitOid": FIRST}
        self.server.posts.append((self.path, sent))
        if "/preupload/" in self.path:
            how = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file["path"], **how} for file in json.loads(sent)["files"]]}
        if "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    file = self.server.folder / line["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
        self.say(200, {}, json.dumps(answer).encode())

    def say(self, code, headers, body=b""):
        self.send_response(code)
        for key, value in {"X-Repo-Commit": FIRST, "Content-Length": len(body), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


COMMANDS = """
import json, sys
from gen.cli import main
print([main(line) for line in json.loads(sys.argv[1])])
"""


@pytest.mark.slow
def test_the_client_of_the_hub_speaks_to_a_server(trained, tmp_path):
    """The package itself, in processes of its own, for it reads HF_ENDPOINT when it is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.folder, server.posts = tmp_path / "hub", []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    there |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}

    def call(*lines):
        """Commands in one process: their exit codes, and what is said."""
        command = [sys.executable, "-c", COMMANDS, json.dumps(lines, default=str)]
        done = subprocess.run(command, env={**os.environ, **there}, capture_output=True, text=True, check=False)
        return json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr

    try:
        codes, out, err = call(["push", trained, "owner/name", "--license", "mit", "--yes"])
        assert (codes, out) == ([0], f"uploaded: hf:owner/name@{FIRST}\n[0]\n"), err
        created = json.loads(server.posts[0][1])
        assert server.posts[0][0] == "/api/repos/create" and created["name"] == "name"
        assert created.get("visibility") == "private" or created.get("private") is True  # as the version says it
        (server.folder / "code.py").write_text("raise SystemExit")
        names, few = ("owner/name@main", f"owner/name@{FIRST}", "owner/none@main"), ["-n", "1", "--steps", "1"]
        out = ["--out", tmp_path / "a.npz"]
        codes, _, err = call(*(["sample", f"hf:{name}", *few, *out] for name in names))
        (kept,) = (tmp_path / "cache/gen/hub").iterdir()
        assert kept.name == f"owner--name@{FIRST[:12]}" and not (kept / "code.py").exists()
        assert codes == [0, 0, 2] and "hf:owner/none@main cannot be reached (RepositoryNotFoundError" in err
    finally:
        server.shutdown()
        server.server_close()


def test_the_state_of_a_training_stays_here(trained, tmp_path):
    last = checkpoints.newest(trained / "checkpoints")
    manifest = hub.write_weights(last, tmp_path / "copy")
    assert any(name.startswith("state/") for name in checkpoints.read(last)["files"])
    assert checkpoints.read(tmp_path / "copy") == manifest
    assert not (tmp_path / "copy/state").exists() and gen.load(tmp_path / "copy").params
