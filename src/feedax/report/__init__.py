"""What a run leaves for a person.

- `feedax.report.run_folder`: the folder of one run.
- `feedax.report.figures`: loss and accuracy by epoch, and what a network saw, drawn.
- `feedax.report.sweep_folder`: the folder of a sweep.
- `feedax.report.recorder`: a callback of `fit` that writes the folder of its run.

Import what you need from its module: matplotlib and JAX are each only loaded by the one that
uses it.
"""
