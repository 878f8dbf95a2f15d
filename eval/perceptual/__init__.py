"""Perceptual distances as losses, one file each: frozen networks of pictures, through which gradients go.

    lpips    the learned perceptual distance, with weights from a file

A plug-in keeps the contract of gen.distillers.distances: a frozen dataclass, called with outputs and targets in
[-1, 1].
"""
