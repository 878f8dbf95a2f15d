"""Where published weights come from: one file per origin, named as `gen import --from` calls it.

An origin is a frozen dataclass; its fields are what the weights themselves do not tell, such as the number of heads.

    claims(weights) -> bool            whether a file could be of this origin, by its names
    read(weights, preset) -> Found     its tensors under our names, and a Run: the model with all its conventions, path,
                                       parameterisation, and how it was sampled; UserError if they are none of its

Files that start with _ are no origins. Key names are those of the public repositories that each file names.
"""
