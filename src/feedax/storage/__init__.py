"""Arrays in files: complete or absent, self-describing, and without code in them.

- `feedax.storage.plain_json`: JSON, checked where somebody else may have written it.
- `feedax.storage.safetensors_file`: the layout of a safetensors file, written and checked.
- `feedax.storage.params_file`: parameters as one file.
- `feedax.storage.snapshot`: any state's arrays and keys on the host, and back.
- `feedax.storage.checkpoint_file`: a snapshot as one file, to the bit, with proof that it is whole.
"""
