"""Block schedules: the window in which tokens may be committed. Contract: gen.text.contracts.BlockSchedule."""
