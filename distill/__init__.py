"""Distillation: one file per method, each an objective over roles.

A method is a frozen dataclass; see gen/objectives for the contract.
"""

if __name__ != "gen.distill":
    raise ImportError("import gen.distill, not distill")
