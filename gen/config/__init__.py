"""Configuration and files: what this wing offers, with the module that defines it.

    Plug-ins by name             build, find, names, part; Spec                                             spec
    Dataclass <-> JSON           spec_of, convert, override; Json                                           spec
    Errors for the user          UserError, MissingDependency, NonFinite                                  errors
    Checkpoints                  write, read, manifest_of, locate, newest, lineage; write_json       checkpoints
    Names that files give        allowing, names_from                                                      trust
    Files that anybody wrote     read_json, parse_json, read_toml, read_text, read_lines                 reading
    Files of torch, as data      read_torch                                                        torch_file
    Tensors as pictures          to_uint8, to_pil, contact_sheet                                          images

`checkpoints`, `torch_file` and `images` need torch and are not imported here.
"""

from gen.config.errors import MissingDependency, NonFinite, UserError
from gen.config.spec import Json, Spec, build, convert, find, names, override, part, spec_of
from gen.config.trust import allowing

__all__ = [
    "Json", "MissingDependency", "NonFinite", "Spec", "UserError", "allowing", "build", "convert", "find", "names",
    "override", "part", "spec_of",
]  # fmt: skip
