"""Measurement operators y = A x with adjoints: what a picture is restored from. Contract: lib.operator.

A plug-in is a frozen spec; `on(shape)` makes the Operator for samples of that shape. Noise is the user's: y = A x + n.
"""

OTHER_NAMES = {
    "Downsampling": "pool",
    "Inpainting": "inpaint",
}
