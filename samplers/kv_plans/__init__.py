"""What is computed anew at a step, and what is taken from the memory of keys and values. Contract:
gen/text/contracts.
"""
