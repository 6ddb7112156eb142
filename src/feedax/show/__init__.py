"""The local page over a folder of runs, served while others write them.

- `feedax.show.runs`: what is in the folder, read without changing or locking anything.
- `feedax.show.networks`: pictures answered by a run's network.
- `feedax.show.app`: the addresses of the page, and who may ask for them.
- `feedax.show.server`: a port of this machine, and the server that listens there.

JAX is loaded when the first picture comes, and not before.
"""
