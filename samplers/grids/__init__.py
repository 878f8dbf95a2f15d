"""Grids: frozen objects with times(path, steps) -> float64 [steps + 1], falling from near t1 to exactly 0."""
