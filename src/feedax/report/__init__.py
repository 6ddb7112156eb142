"""What a run leaves for a person.

- `feedax.report.run_folder`: the folder of one run.
- `feedax.report.recorder`: the callback of `fit` that writes it.
- `feedax.report.figures`: loss and accuracy by epoch, and what a network saw, drawn.
- `feedax.report.sweep_folder`: the folder of a sweep.

Import what you need from its module: matplotlib is only loaded where figures are drawn.
"""
