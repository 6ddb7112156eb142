"""What a run leaves for a person.

- `feedax.report.run_folder`: the folder of one run.
- `feedax.report.curves`: loss and accuracy by epoch, drawn.
- `feedax.report.environment`: the versions and the machine that a run is written down with.

Import what you need from its module: matplotlib and JAX are each only loaded by the one that
uses it.
"""
