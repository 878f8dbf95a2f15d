"""The parts of `gen bench`: a file each, whose function yields the cases for a device and a dtype.

    part(context: gen.eval.bench.BenchContext) -> Iterator[Case]

A case is made when it is its turn, and what is large in it, weights and inputs, when it is measured. To list the cases
must cost nothing. Peers that are not installed here raise Unavailable from their `make`, which says how to get them.
"""
