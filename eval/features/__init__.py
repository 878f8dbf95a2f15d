"""Feature extractors: frozen objects with load() -> callable, uint8 images [B, C, H, W] -> float32 features [B, D]."""
