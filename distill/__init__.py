"""Distillers: one file per method, each an objective over roles. Imported as gen.distillers; gen.distill runs one.

A method is a frozen dataclass: an objective (gen/training/objectives) with student(run, teacher, folder), which returns
the student's Run from its teacher's.
"""

if __name__ != "gen.distillers":
    raise ImportError("import gen.distillers, not distill")
