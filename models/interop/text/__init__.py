"""Text models of Hugging Face folders: one file per format, named as `gen import --from` calls it.

A format is an origin as in gen.models.interop.public: a frozen dataclass with claims(weights) and read(weights,
preset). It reads config.json for sizes, and renames tensors; the code that lies in such folders is never run. Where the
folder has a tokenizer.json it is copied beside the weights, and the model's tokenizer is that file.

Files that start with _ are no formats. Key names are those of the public repositories that each file names.
"""
