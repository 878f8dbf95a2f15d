"""Stopping rules: texts that are finished before their last mask is. Contract: gen.text.contracts.StoppingRule."""
