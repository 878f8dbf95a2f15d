"""Metrics: torchmetrics.Metric over features keyed by the sample's index, so no batch size changes a bit.
"""
