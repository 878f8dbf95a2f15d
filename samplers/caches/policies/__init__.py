"""When to compute: frozen policies."""
