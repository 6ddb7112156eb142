"""Worker processes: how they start, and how objects and arrays travel between them and the trainer.

The trainer's side is `server` (starts processes, by `forking`) and `channel` (speaks with them); a
worker's side is `worker`. `travel` and `ring` carry objects and arrays between them, and `plain`
finds the long lists that travel once for many epochs. Nothing here imports the rest of
`feedax.data`: what a worker loads, `feedax.data.loading`, is pickled to it.
"""
