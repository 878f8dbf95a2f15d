"""The parts of `gen bench`: a file each, whose function yields the cases for a device and a dtype.

    part(where: gen.eval.bench.Where) -> Iterator[Case]

A case is made when it is its turn, and what is large in it, weights and inputs, when it is measured. To list the cases
must cost nothing. Peers that are not installed here raise Absent from their `make`, which says how to get them.
"""
