"""Statistics: frozen objects, (rows of the samples, rows of the reference) -> Estimate. Contract: gen.eval.estimate."""
