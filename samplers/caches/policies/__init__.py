"""Cache policies: when to compute. Contract: gen.samplers.caches.lib.parts.CachePolicy."""
