"""KV plans: the positions that a step computes, all others being cached. Contract: gen.text.contracts.KvPlan."""
