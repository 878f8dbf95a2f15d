"""Feature predictors for what is not computed. Contract: gen.samplers.caches.lib.parts.FeaturePredictor."""
