"""What a run leaves for a person.

- `feedax.report.run_folder`: the folder of one run.
- `feedax.report.recorder`: the callback of `fit` that writes it.
- `feedax.report.sweep_folder`: the folder of a sweep.
- `feedax.report.trained_run`: a run with its network as a function.
- `feedax.report.figures`, `feedax.report.diagrams`: figures of histories, and of predictions.
- `feedax.report.model_report`, `feedax.report.content`, `feedax.report.comparison`,
  `feedax.report.page`: what a page says of one run, or of several, and the file.
- `feedax.report.statistics`, `feedax.report.images`: how good predictions are; arrays as pictures.

Import what you need from its module: matplotlib is only loaded where figures are drawn.
"""
