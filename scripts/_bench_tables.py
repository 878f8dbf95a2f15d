"""Tables of `gen bench`, over the results of every machine."""

from collections.abc import Iterator

from scripts import _table_parts
from scripts._table_parts import load, markdown, source

DTYPES = ("float32", "bfloat16")


def bench(part: str) -> dict[str, dict[str, dict]]:
    """Read one part of `gen bench` on CPUs: {dtype: {file's name: result}}, of every machine that was measured.

    A machine's results lie in bench/cpu-DTYPE or, of further ones, in bench/MACHINE/cpu-DTYPE.
    """
    files = {dtype: sorted((_table_parts.RESULTS / "bench").glob(f"**/cpu-{dtype}/{part}.json")) for dtype in DTYPES}
    names = {
        dtype: [str(path.relative_to(_table_parts.RESULTS).with_suffix("")) for path in found]
        for dtype, found in files.items()
    }
    return {dtype: {name: load(name) for name in found} for dtype, found in names.items() if found}


def bench_ratios(part: str) -> dict[tuple[str, str, str, str], list[dict]]:
    """Return all machines' ratios of times by (case, dtype, ours, peer), cases in their order."""
    ratios: dict = {}
    for dtype, results in bench(part).items():
        for result in results.values():
            for case in result["cases"]:
                for ratio in case["ratios"]:
                    ratios.setdefault((case["case"], dtype, ratio["ours"], ratio["peer"]), []).append(ratio)
    return ratios


def bench_source(part: str) -> Iterator[str]:
    """Yield the line under a table of `gen bench`: machines, dates and versions."""
    results = bench(part)["float32"]
    first = next(iter(results.values()))
    versions = f"torch {first['versions']['torch']}, diffusers {first['versions']['diffusers']}"
    where = "; ".join(f"{result['date'][:10]}, {processor(result['machine'])}" for result in results.values())
    spread = "ranges are over the machines" if len(results) > 1 else "95 % intervals in brackets"
    how = f"medians of calls in turns in one process, {spread}; made by `gen bench`"
    yield from source(next(iter(results)), f"{where}, {versions}; {how}")


def processor(machine: dict) -> str:
    """Return a machine's name and, if its result says, the family and model of its processor."""
    cpu = machine.get("cpu")
    return machine["name"] + (f" (family {cpu['family']}, model {cpu['model']})" if cpu else "")


def speedup(ratios: list[dict[str, float]]) -> str:
    """Format a ratio of times with its interval; of several machines the range."""
    if len(ratios) == 1:
        return f"{ratios[0]['value']:.2f} [{ratios[0]['low']:.2f}, {ratios[0]['high']:.2f}]"
    return value_range(ratios)


def value_range(ratios: list[dict[str, float]]) -> str:
    """Format the values of several machines as a range, one as it is, none as nothing."""
    values = sorted({f"{ratio['value']:.2f}" for ratio in ratios}, key=float)
    return " to ".join(dict.fromkeys([*values[:1], *values[-1:]]))


def engines() -> Iterator[str]:
    """Yield the table of the packed engine against diffusers with the same weights and dtype."""
    cells = []
    for part in ("forward", "sample"):
        ratios = bench_ratios(part)
        for case in dict.fromkeys(key[0] for key in ratios if key[1] == "float32"):
            for peer in ("diffusers eager", "diffusers compiled"):
                row = [speedup(ratios.get((case, dtype, "packed", peer), [])) for dtype in DTYPES]
                if any(row):
                    cells.append([case, peer, *row])
    yield from markdown(["case", "against", *DTYPES], cells)
    yield from bench_source("forward")


def operations() -> Iterator[str]:
    """Yield the table of single ops: ours against eager PyTorch and against the fastest other way."""
    cells = []
    for part in ("attention", "fused", "ssm"):
        ratios = bench_ratios(part)
        for case, ours in dict.fromkeys((key[0], key[2]) for key in ratios):
            what = case.removesuffix(", forward") + (", packed weights" if "packed" in ours else "")
            row = [f"attention, {what}" if part == "attention" else what]
            row.append(speedup(ratios.get((case, "float32", ours, "eager"), [])))
            for dtype in DTYPES:
                peers = {key[3]: found for key, found in ratios.items() if key[:3] == (case, dtype, ours)}
                hardest = min(peers, key=lambda peer: min(ratio["value"] for ratio in peers[peer]), default="")
                row.append(f"{value_range(peers[hardest])} ({hardest})" if hardest else "")
            cells.append(row)
    heads = ["op", "against eager, float32", *(f"against the fastest, {dtype}" for dtype in DTYPES)]
    yield from markdown(heads, cells)
    yield from bench_source("attention")


def block_diffusion() -> Iterator[str]:
    """Yield the table of the decoding loop beside the one of diffusers."""
    ratios, names = bench_ratios("decode"), {"plain": "gen, no cache", "cached": "gen, exact block cache"}
    cells = [
        [case, names[ours], *(speedup(ratios.get((case, dtype, ours, peer), [])) for dtype in DTYPES)]
        for case, ours, peer in dict.fromkeys((key[0], key[2], key[3]) for key in ratios)
    ]
    yield from markdown(["case", "loop", *DTYPES], cells)
    yield from bench_source("decode")
