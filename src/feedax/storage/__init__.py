"""Arrays in files: complete or absent, self-describing, and without code in them.

- `feedax.storage.replace_file`: write a file so that it is complete or absent.
- `feedax.storage.params_file`: parameters as one file.
"""
