"""Schedule search: a grid of times, and a mask of blocks. Contract: gen.samplers.search.lib.problem.SearchMethod.

The result is data, a JSON file that the grid `searched` and the cache `searched` read.
"""
