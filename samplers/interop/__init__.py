"""Our solvers in the loops of other libraries."""
