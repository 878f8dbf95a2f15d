"""Solvers: frozen rules for one step from time t to s. Contract: gen.diffusion.sampling.Solver.

A file holds one solver, first in `__all__`; tests/test_every.py then measures its order on an exact mixture, counts its
evaluations, and checks that a sample does not depend on its batch.
"""
