"""Origins of published weights: one file each, named as `gen import --from` calls it.

An origin is a frozen dataclass; its fields are what the weights themselves do not show, such as the number of heads.
It keeps gen.models.interop.lib.inferred.Origin:

    claims(weights) -> bool               whether a file could be of this origin, by its names
    read(weights, preset) -> Conversion   its tensors under our names, and a Run: the model with all its conventions,
                                          path, parameterisation, and sampler; UserError for weights of another origin

    publish(state) -> dict                optional: what a .pt file of the origin holds; the state dict itself if absent

Key names are those of the public repositories that each file names.
"""
