"""Where in a text one may commit at a step, from the first masked place on. Contract: gen/text/contracts."""
