"""Arrays in files: complete or absent, self-describing, and without code in them.

- `feedax.storage.replace_file`: write a file so that it is complete or absent.
- `feedax.storage.plain_json`: JSON that somebody else may have written.
- `feedax.storage.tensors_header`: the header of a safetensors file, checked.
- `feedax.storage.leaf_names`: the names of a tree's leaves.
- `feedax.storage.params_file`: parameters as one file.
- `feedax.storage.snapshot`: any state's arrays and keys on the host, and back.
- `feedax.storage.checkpoint_file`: a snapshot as one file, to the bit, with proof that it is whole.
- `feedax.storage.writer`: a thread that writes files.
"""
