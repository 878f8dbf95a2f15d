"""The command line: `gen VERB ...`. A verb is a module of this folder, named as it is typed.

Its docstring is its help, the first line its entry in `gen --help`. It has

    add_arguments(parser) -> None    declare its own options (argparse)
    run(args) -> int                 do it and return the exit code, 0 if all went well

and, if it is set up by a frozen dataclass such as a Run,

    settings(args) -> dataclass      what `--dotted.key value` changes, before any change
    about(args) -> str               optional: what --help says of the recipe or method that is named

Then every option the parser does not know is a change to that dataclass: `--optim.lr 2e-4`, `--optim.lr=2e-4`.
run(args) finds the changed dataclass in `args.settings` and the changes, as text by key, in `args.overrides`;
`--print-config` prints it as JSON and stops; `--help` behind the other arguments lists its keys and their values.
Values and names are checked by gen.config.spec, as in files: static types cannot express a registry that anyone may add
to.

Names "my_pkg.mod:Class" are followed where the user types or writes them; where a checkpoint, a run or a record has
them, only with `--allow my_pkg`, which every verb takes (gen.config.trust).

"hf:owner/name@revision" may stand wherever a folder of a model is taken: it is fetched before the verb runs
(gen.config.hub).

An option whose type is gen.cli.lib.options.read_spec takes a name or a JSON spec, and dotted keys of it: --solver heun
--solver.churn .1.

Verbs import torch, and all that needs it, inside their functions: `gen --help` loads none of it.
Exit codes: 0 done, 1 a bug or a broken installation, 2 wrong input, 3 something optional is missing, 4 a loss or sample
became non-finite, 130 interrupted, 143 stopped by SIGTERM. Errors are one line on stderr; `--debug`, anywhere, adds the
traceback.
"""

from gen.cli._main import main, verbs

__all__ = ["main", "verbs"]
