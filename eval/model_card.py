"""The page of a model on a hub: what it is, how to use it, how it was evaluated and trained, from its own files."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gen.config.spec import Json
from gen.eval.leaderboard import as_markdown
from gen.eval.ranking import ranking
from gen.eval.record import Record
from gen.eval.tables import markdown_text, one_line

__all__ = ["model_card"]

NONE = "No record of an evaluation came with it."
CARD = """---
license: {license}
library_name: gen-diffusion
pipeline_tag: {task}
tags: {tags}
---

# {title}

{about}

Role {role}, {steps:,} steps of training; the manifest's sha256 is `{sha256}`.

## Use

```sh
pip install 'gen-diffusion[hub]'
```

```python
import gen

model = gen.load("hf:{repository}@COMMIT")  # a commit of this repository
{use}
```

## Evaluation

{evaluation}

## Training

The run, as `gen train run.json` takes it:

```json
{run}
```
"""


def model_card(repository: str, manifest: Json, about: str, text: bool, records: Sequence[Record], license: str) -> str:
    """Return README.md of a repository, with the fields that the hub reads at its top.

    Args:
        repository: "owner/name".
        manifest: of the checkpoint.
        about: the pipeline in one line.
        text: whether it writes text; it draws samples otherwise.
        records: its evaluations.
        license: an identifier of the hub's, such as "apache-2.0".
    """
    run = manifest["run"]
    parts = [part["name"] for key in ("model", "data", "objective") if isinstance(part := run.get(key), dict)]
    table = as_markdown(ranking(list(records)), "Evaluation").partition("\n\n")[2].strip() if records else ""
    return CARD.format(
        license=json.dumps(license),
        task="text-generation" if text else "unconditional-image-generation",
        tags=json.dumps(["gen", "masked-diffusion" if text else "diffusion", *dict.fromkeys(map(str, parts))]),
        title=markdown_text(repository),
        about=markdown_text(one_line(about)),
        role=manifest.get("role"),
        steps=manifest.get("step", 0),
        sha256=manifest["sha256"],
        repository=repository,
        use='print(model.generate(["..."], 64))' if text else 'model.sample(16).sheet().save("samples.png")',
        evaluation=f"{table}\n\nRows of one table are comparable; the records are in `eval/`." if table else NONE,
        run=json.dumps(run, indent=1),
    )
