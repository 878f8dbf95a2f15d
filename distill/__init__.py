"""Distillation: one file per method, each an objective over roles.

A method is a frozen dataclass: an objective (see gen/objectives) with student(run, teacher, folder), which returns the
student's Run from its teacher's.
"""

if __name__ != "gen.distill":
    raise ImportError("import gen.distill, not distill")

from gen import callable_module

callable_module(__name__)
