"""Shared pieces of ParallelBench tasks: rules, names, draws."""
