"""Settings that were published with a result: recipes by data set, which gen.training.published lists.

Nothing here was measured: results.py says what the authors report, and what could not be checked against their code.
"""
