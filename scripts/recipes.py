"""Write benchmarks/results/recipes.json: a dry run of every recipe with published settings.

    python scripts/recipes.py [NAME ...]

Rows of other names stay as they are. Nothing is trained, and no data need be there; it takes some minutes.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from gen.cli.lib.dry_run import GPUS, MFU, estimate_of
from gen.config.spec import find, names
from gen.config.writing import write_text
from gen.training.papers.results import RESULTS

OUT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "recipes.json"
FOLDER = "training.published"


def known(name: str) -> dict:
    """Return what a recipe says without being counted."""
    run, published = find(name, FOLDER)(), RESULTS[name]
    cited = {"result": published.result, "by": published.by, "other": published.other, "checked": published.checked}
    return {"steps": run.steps, "batch_size": run.batch_size, "sharded": run.shard, "published": cited}


def row(name: str) -> dict:
    """Return a recipe's row, from its dry run."""
    run = find(name, FOLDER)()
    found = estimate_of(run)
    cost = found.cost
    lean = run.gradient_checkpointing and cost.lean is not None
    return {
        **known(name),
        "parameters": {role: sum(counts) for role, counts in cost.parameters.items()},
        "forward": cost.forward,
        "update": cost.update,
        "micro_batch": cost.micro_batch,
        "peak": None if lean else cost.memory.peak,
        "lean_peak": cost.lean and cost.lean.peak,
        "peak_tflops": found.peak_tflops,
        "hours": round(found.hours),
        "notes": list(cost.notes),
    }


def main(chosen: list[str]) -> int:
    rows: Mapping[str, dict] = json.loads(OUT.read_text("utf-8"))["rows"] if OUT.exists() else {}
    for name in chosen or names(FOLDER):
        rows = {**rows, name: row(name)}
        print(f"{name}: {sum(rows[name]['parameters'].values()):,} parameters", flush=True)
        kept = {key: rows[key] for key in sorted(rows) if key in names(FOLDER)}
        write_text(OUT, json.dumps({"gpus": GPUS, "mfu": MFU, "rows": kept}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
