"""Write the tables of docs/*.md from benchmarks/results.

    python scripts/tables.py [--check]

A page marks a table's lines by `<!-- table: NAME -->` and `<!-- end -->`; a function of this file with that name yields
them. --check changes nothing and fails if a page is not up to date.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts._bench_tables import block_diffusion, engines, operations
from scripts._table_parts import ROOT, estimate, load, markdown, mean, source

REGION = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def study_source(name: str, study: dict) -> Iterator[str]:
    """Yield the source line of a study, which scripts/study.py wrote."""
    about = f"{study['date']}, {study['samples']} samples a run, torch {study['torch']}, CPU ({study['cpu']})"
    yield from source(name, f"{about}; made by `python scripts/study.py benchmarks/{name}.toml`")


def teachers() -> Iterator[str]:
    """Yield the table of the teacher's quality by number of Euler steps."""
    study = load("distillation")
    rows = [row for row in study["rows"] if row["name"] == "teacher"]
    heads = ["Euler steps", *(f"{row['nfe']:g}" for row in rows)]
    cells = [["FID", *(estimate(row["fid"]) for row in rows)]]
    for name, key, digits in (("label accuracy", "accuracy", 3), ("recall", "recall", 2), ("coverage", "coverage", 2)):
        cells.append([name, *(mean(row[key], digits) for row in rows)])
    yield from markdown(heads, cells)


def students() -> Iterator[str]:
    """Yield the table of all students in one and two evaluations; the other columns belong to the fewest."""
    study = load("distillation")
    by_name: dict = {}
    for row in study["rows"]:
        by_name.setdefault(row["name"], {})[row["nfe"]] = row
    cells = []
    for name, at in by_name.items():
        if name.startswith("teacher"):
            continue
        first = at[min(at)]
        other = ", ".join(f"{estimate(row['fid'])} at {nfe:g}" for nfe, row in at.items() if nfe > 2)
        row = [name, *(estimate(at[nfe]["fid"]) if nfe in at else "" for nfe in (1, 2)), other]
        cells.append([*row, mean(first["accuracy"], 3), mean(first["recall"], 2), mean(first["coverage"], 2)])
    heads = ["student", "FID at 1 NFE", "FID at 2 NFE", "FID at more", "label accuracy", "recall", "coverage"]
    yield from markdown(heads, cells)
    yield from study_source("distillation", study)


def recipes() -> Iterator[str]:
    """Yield the table of the recipes with published settings, and what their dry runs counted."""
    found = load("recipes")

    def gib(size: int | None) -> str:
        return "" if size is None else f"{size / 2**30:.3g}"

    rows = []
    for name, row in found["rows"].items():
        cited, sharded = row["published"], " (sharded)" if row["sharded"] else ""
        texts = [f"{cited['result']} ({cited['by']})" if cited["result"] else "none", cited["other"]]
        result = "; ".join(text for text in texts if text) + ("" if cited["checked"] else ", from memory")
        counts = row["parameters"].items()
        parameters = " + ".join(f"{count:,}" + (f" {role}" if len(counts) > 1 else "") for role, count in counts)
        alone = " *" if any("cannot be followed" in note for note in row["notes"]) else ""
        memory = [gib(row["peak"]), gib(row["lean_peak"]) + sharded]
        once = "" if row["forward"] is None else f"{row['forward'] / 2e9:,.4g}"  # an autoencoder is no denoiser
        size = [once, f"{row['update'] / 1e12:,.4g}{alone}"]
        plan = [f"{row['steps']:,} x {row['batch_size']}", f"{row['hours']:,}{alone}"]
        rows.append([f"`{name}`", parameters, *size, *memory, *plan, result])
    heads = ["recipe", "parameters", "GMACs", "TFLOP of an update", "GiB of one of 8 GPUs", "with checkpointing",
             "updates x batch", "GPU-hours", "published"]  # fmt: skip
    yield from markdown(heads, rows)
    yield ""
    yield "Source: [recipes.json](../benchmarks/results/recipes.json), made by `python scripts/recipes.py`."


def mixture() -> Iterator[str]:
    """Yield the table of students of an exact teacher in the plane."""
    found = load("mixture")
    cells = []
    for row in found["rows"]:
        budget = f"{row['updates']} updates, {row['seconds']:.0f} s" if "updates" in row else ""
        cells.append([row["name"], f"{row['nfe']}", budget, f"{row['modes']} of 8", f"{row['inside']:.3f}"])
        cells[-1] += [f"{row['energy_distance']:.1e}", f"{row['sliced_wasserstein']:.3f}"]
    heads = ["student", "NFE", "training", "modes", "inside the modes", "energy distance", "sliced W2"]
    yield from markdown(heads, cells)
    about = f"{found['date']}, torch {found['torch']}, CPU ({found['cpu']}), {found['threads']} thread, one seed"
    yield from source("mixture", f"{about}; made by `python scripts/mixture_students.py`")


def adapters() -> Iterator[str]:
    """Yield the table of beginnings of adapters at equal steps."""
    found = load("adapters")
    cells = []
    for row in found["rows"]:
        numbers = [f"{row['loss']['value']:.4f}", f"{row['fid']['value']:.2f}"]
        spread = [" / ".join(f"{one:.4f}" for one in row["loss"]["seeds"])] if row["init"] else [""]
        cells.append([f"`{row['init']}`" if row["init"] else "before", *numbers, *spread])
    yield from markdown(["lora.init", "loss", "FID", "loss of each seed"], cells)
    yield from source("adapters", _adapters_about(found))


def adapter_methods() -> Iterator[str]:
    """Yield the table of methods of adapters at equal steps, each at its best learning rate of those tried."""
    found = load("adapters")
    cells = []
    for method in dict.fromkeys(row["method"] for row in found["methods"]):
        rows = [row for row in found["methods"] if row["method"] == method]
        best = min(rows, key=lambda row: row["loss"]["value"])
        seeds = " / ".join(f"{one:.4f}" for one in best["loss"]["seeds"])
        cells.append([f"`{method}`", f"{best['rank']}", f"{best['numbers']:,}"])
        cells[-1] += [f"{row['loss']['value']:.4f}" for row in rows]
        cells[-1] += [f"{best['fid']['value']:.2f} at {best['lr']:g}", seeds]
    rates = [f"loss at {rate:g}" for rate in dict.fromkeys(row["lr"] for row in found["methods"])]
    heads = ["lora.method", "rank", "trained", *rates, "FID at the best rate", "its loss of each seed"]
    yield from markdown(heads, cells)
    yield from source("adapters", _adapters_about(found))


def _adapters_about(found: dict[str, Any]) -> str:
    """Return on what the comparison of adapters was made."""
    about = f"{found['date']}, torch {found['torch']}, CPU ({found['cpu']}), one thread, {found['seeds']} seeds"
    return f"{about}; made by `python scripts/adapter_starts.py`"


def subjects() -> Iterator[str]:
    """Yield the table of a subject and a style that few pictures teach."""
    found = load("subjects")
    keys = ("learned", "elsewhere", "as asked", "leaked", "others as asked")
    cells = []
    for row in found["rows"]:
        prior = "" if row["way"] == "before" else row["prior"]
        cells.append([row["what"], row["way"], prior])
        cells[-1] += [" / ".join(f"{value:.2f}" for value in row[key]) for key in keys]
    yield from markdown(["", "trained", "prior", *keys], cells)
    about = f"{found['date']}, torch {found['torch']}, CPU ({found['cpu']}), one thread, a number for each seed"
    yield from source("subjects", f"{about}; made by `python scripts/subjects.py`")


def tokenizers_digits() -> Iterator[str]:
    """Yield the table of tokenizers of digits, and of one DiT on the latents of each."""
    yield from _tokenizers("tokenizers_digits", 3)


def tokenizers_photographs() -> Iterator[str]:
    """Yield the table of tokenizers of photographs, and of one DiT on the latents of each."""
    yield from _tokenizers("tokenizers_photographs", 1)


def _tokenizers(name: str, digits: int) -> Iterator[str]:
    """Yield a table of tokenizers, distances with some digits behind the point."""
    found = load(name)
    pairs = [key for key in ("psnr", "ssim", "lpips") if key in found["rows"][0]["reconstructed"]]
    cells = []
    for row in found["rows"]:
        channels, height, width = row["latent"]
        cells.append([row["name"], f"{row['coder']:,}", f"{channels} x {height} x {width}"])
        cells[-1] += [estimate(row["reconstructed"][key], 2 if key == "psnr" else 3) for key in pairs]
        cells[-1].append(estimate(row["reconstructed"]["fid"], digits))
        cells[-1] += [f"{row['denoiser']:,}", *(estimate(one["fid"], digits) for one in row["generated"].values())]
    shares = [f"gFID at {share} of the steps" if share != "1" else "gFID" for share in found["rows"][0]["generated"]]
    heads = ["tokenizer", "trained", "latent", *(key.upper() for key in pairs), "rFID", "of the DiT", *shares]
    yield from markdown(heads, cells)
    yield ""
    yield f"The pictures that were trained on have FID {estimate(found['real']['fid'], digits)}."
    seeds, task = found["rows"][0]["seeds"], name.partition("_")[2]
    about = f"{found['date']}, torch {found['torch']}, CPU ({found['cpu']}), one thread, {seeds} seeds"
    yield from source(name, f"{about}; made by `python scripts/compare_tokenizers.py {task}`")


def compared(name: str) -> Iterator[str]:
    """Yield a table of trainings, each beside the first one."""
    study = load(name)
    rows, first = study["rows"], study["rows"][0]
    pixels = all("pixel_fid" in row for row in rows)
    heads = ["", "parameters", "steps", "seeds", "FID", "ratio", *(["FID of pixels"] if pixels else []), "accuracy"]
    cells = []
    for row in rows:
        fid = estimate(row["fid"]) if row["seeds"] > 1 else mean(row["fid"], 2)
        cell = [row["name"], f"{row['params']:,}", str(row["steps"]), str(row["seeds"]), fid]
        cell.append(f"{row['fid']['value'] / first['fid']['value']:.2f}")
        cells.append(
            [
                *cell,
                *([(estimate if row["seeds"] > 1 else mean)(row["pixel_fid"], 3)] if pixels else []),
                mean(row["accuracy"], 3),
            ]
        )
    yield from markdown(heads, cells)
    yield from study_source(name, study)


def families() -> Iterator[str]:
    """Yield the table of network families."""
    yield from compared("families")


def mixers() -> Iterator[str]:
    """Yield the table of mixers of tokens."""
    yield from compared("mixers")


def training() -> Iterator[str]:
    """Yield the table of training recipes."""
    yield from compared("training")


def decoding() -> Iterator[str]:
    """Yield the table of the fastest setting of each policy with a success of at least .9."""
    rows = load("decoding")
    cells = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        good = [row for row in rows if row["curve"] == curve and row["success"]["value"] >= 0.9]
        if good:
            best = max(good, key=lambda row: row["tokens_per_forward"]["value"])
            cells.append([best["label"], estimate(best["success"]), estimate(best["tokens_per_forward"])])
            cells[-1].append(f"{best['tokens_per_second']:.0f}")
        else:
            top = max((row for row in rows if row["curve"] == curve), key=lambda row: row["success"]["value"])
            cells.append([f"{top['label']} (its best success)", estimate(top["success"])])
            cells[-1] += [estimate(top["tokens_per_forward"]), f"{top['tokens_per_second']:.0f}"]
    yield from markdown(["policy", "success", "tokens per evaluation", "tokens per second"], cells)
    first = rows[0]
    about = f'{first["date"][:10]}, {first["device"]}, {first["n"]} prompts of "{first["task"]}" at temperature 1'
    yield from source("decoding", f"{about}; made by `gen bench-decode`")


def restoration() -> Iterator[str]:
    """Yield the tables of methods of restoration on digits, with and without noise."""
    found = load("restoration")
    named = list(dict.fromkeys(row["operator"] for row in found["rows"]))
    timed = any("seconds" in row for row in found["rows"])
    for noise in sorted({row["noise"] for row in found["rows"]}, reverse=True):
        rows = [row for row in found["rows"] if row["noise"] == noise]
        cells = []
        for method in dict.fromkeys(json.dumps(row["method"]) for row in rows):
            own = {row["operator"]: row for row in rows if json.dumps(row["method"]) == method}
            first = next(iter(own.values()))
            name = "A+ y" if first["method"] is None else f"`{first['method']['name']}`"
            cost = [f"{first['nfe']:.0f}" if "nfe" in first else "", *([_seconds(own)] if timed else [])]
            quality = (f"{own[key]['psnr']:.2f} / {own[key]['fid']:.1f}" if key in own else "" for key in named)
            cells.append([name, *cost, *quality])
        yield from (f"With noise {noise:g}, PSNR in dB / FID:" if noise else "Without noise, PSNR in dB / FID:", "")
        yield from markdown(["method", "NFE", *(["processor, s"] if timed else []), *named], cells)
        yield ""
    digits = found["rows"][0]["digits"]
    about = f"{found['date']}, {digits} digits, one seed, torch {found['torch']}, one thread of a CPU ({found['cpu']})"
    yield from list(source("restoration", f"{about}; made by `python scripts/compare_restoration.py`"))[1:]


def _seconds(rows: dict[str, Any]) -> str:
    """Return the median of the rows' seconds, "" where none was measured."""
    seconds = [row["seconds"] for row in rows.values() if "seconds" in row]
    return f"{statistics.median(seconds):.0f}" if seconds else ""


TABLES = (
    teachers, students, mixture, families, mixers, training, engines, operations, decoding, block_diffusion, recipes,
    adapters, adapter_methods, restoration, subjects, tokenizers_digits, tokenizers_photographs,
)  # fmt: skip


def updated(text: str) -> str:
    """Return a page with every marked table made anew.

    Raises:
        KeyError: a marked name is none of this file's tables.
    """
    tables = {table.__name__: table for table in TABLES}
    return REGION.sub(lambda found: "\n".join([found[1], *tables[found[2]](), "", found[3]]), text)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    args = parser.parse_args(given)
    stale = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := updated(text)) != text:
            stale.append(page.name)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    if stale:
        print(f"{'out of date' if args.check else 'updated'}: {', '.join(stale)}")
    return int(bool(stale) and args.check)


if __name__ == "__main__":
    sys.exit(main())
