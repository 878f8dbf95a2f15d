"""One law over all formats: each file says its number, and any other number is refused in one line."""

import json

import numpy as np
import pytest
import torch

from gen.cli import bench
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.formats import NEWEST, NewerFormat, check_format
from gen.config.reading import read_json
from gen.data.lib.latent_store import LatentStore, read_manifest
from gen.eval.decoding import DecodingRecord, collect_decoding
from gen.eval.record import Record, from_json
from gen.eval.statistics import read_statistics, write_statistics
from gen.samplers.caches.searched import SearchedMask
from gen.samplers.grids.searched import Searched
from gen.samplers.search.lib.problem import SearchResult
from gen.training.log import read_run_file
from gen.training.run_folder import RunFolder


def edit(path, change):
    path.write_text(json.dumps(change(read_json(path))))


def statistics(path, change):
    write_statistics(path, {}, {"extractor": {"name": "x"}})
    held = dict(np.load(path))
    np.savez(path, **{**held, "gen": np.array(json.dumps(change(json.loads(str(held["gen"])))))})
    return lambda: read_statistics(path)


def latents(folder, change, file="records/identity.json"):
    LatentStore(folder, {"pictures": "p"}).open()
    edit(folder / file, change)
    return LatentStore(folder, {"pictures": "p"}).open


def finished_latents(folder, change):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(change({"format": NEWEST["latents"], "kind": "latents"})))
    return lambda: read_manifest(folder)


def checkpoint(folder, change):
    checkpoints.write(folder, {"net.safetensors": {"w": torch.ones(2)}}, {"step": 1})
    edit(folder / "manifest.json", change)
    return lambda: checkpoints.read(folder)


def run(folder, change):
    opened = RunFolder(folder, {"run": {}}, (), 1, (), None)
    opened.open(0)
    opened.close()
    edit(folder / "run.json", change)
    return lambda: read_run_file(folder / "run.json")


def search(path, change, read=lambda path: Searched(path).read()):
    SearchResult((1.0, 0.0), 0.0, ((True,),)).write(path, path={"name": "flow"}, sites=["blocks.0"])
    edit(path, change)
    return lambda: read(str(path))


def mask(path, change):
    return search(path, change, lambda path: SearchedMask(path).start(1))


def record(path, change):
    return lambda: from_json(change({"schema": NEWEST["record"]}), Record, str(path))


def decoding_record(path, change):
    path.write_text(json.dumps([change({"schema": DecodingRecord.schema})]))
    return lambda: collect_decoding([path])


def bench_file(path, change):
    path.write_text(json.dumps(change({"format": NEWEST["bench"], "cases": []})))
    return lambda: bench._read(path)


FORMATS = {
    "bench": [bench_file],
    "checkpoint": [checkpoint],  # and the shards of pairs, of answers and of records of latents
    "decoding record": [decoding_record],
    "latents": [latents, finished_latents],
    "record": [record],
    "run": [run],
    "search": [search, mask],
    "statistics": [statistics],
}
CASES = [(kind, case) for kind, cases in FORMATS.items() for case in cases]


def key_of(content):
    return "schema" if "schema" in content else "format"


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[case.__name__ for _, case in CASES])
def test_a_newer_format_is_refused_in_one_line(kind, case, tmp_path):
    newest = NEWEST[kind]
    read = case(tmp_path / "file.npz", lambda content: {**content, key_of(content): content[key_of(content)] + 1})
    said = rf"was written by a newer gen \((format|schema) {newest + 1}; this one reads up to {newest}\): upgrade"
    with pytest.raises(NewerFormat, match=said) as caught:
        read()
    assert "\n" not in str(caught.value)


CHECKED = [case for case in CASES if case[0] not in ("run", "search")]  # those may be written by hand, without a number


@pytest.mark.parametrize(("kind", "case"), CHECKED, ids=[case.__name__ for _, case in CHECKED])
def test_other_formats_are_refused_too(kind, case, tmp_path):
    for i, wrong in enumerate((0, True, "1", None, [1])):
        read = case(tmp_path / f"{i}.npz", lambda content, wrong=wrong: {**content, key_of(content): wrong})
        with pytest.raises(UserError, match=rf"; allowed: (format|schema) {NEWEST[kind]}$"):
            read()


def test_the_law_is_over_all_formats():
    assert FORMATS.keys() == NEWEST.keys()
    with pytest.raises(UserError, match=r"^a.json is none that gen reads: a list; allowed: format 1$"):
        check_format([], 1, "a.json")


def test_a_run_does_not_go_back_to_an_older_checkpoint(tmp_path):
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / checkpoints.checkpoint_name(step)
        checkpoints.write(folder, {"net.safetensors": {"w": torch.ones(2)}}, {"step": step, "line": []})
    edit(folder / "manifest.json", lambda content: {**content, "format": 9})
    for use in (checkpoints.newest, checkpoints.lineage, lambda folder: checkpoints.prune(folder, 1)):
        with pytest.raises(NewerFormat, match=r"step-0000002 was written by a newer gen \(format 9;"):
            use(tmp_path / "checkpoints")
    with pytest.raises(NewerFormat):
        checkpoints.locate(tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
