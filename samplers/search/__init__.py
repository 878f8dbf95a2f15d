"""Schedule search: frozen objects with search(problem) -> Found, which choose a grid of times, and masks of blocks.

What is found is data, a JSON file that the grid `searched` reads.
"""
