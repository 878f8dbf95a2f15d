"""Shared pieces of searches: the problem, and the trajectory it is measured against."""
