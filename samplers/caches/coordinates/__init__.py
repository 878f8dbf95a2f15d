"""Along what a predictor extrapolates: frozen coordinates of an evaluation, place(context) -> float."""
