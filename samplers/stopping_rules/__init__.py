"""When a text is finished before its last mask is. Contract: gen/text/contracts."""
