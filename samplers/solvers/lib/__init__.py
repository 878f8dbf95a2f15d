"""Shared pieces of solvers: exponential integrators of any order, nodes and stages."""
