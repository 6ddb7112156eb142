"""Loading example by example, in worker processes or in this one.

The trainer's side is `iterators` (torch's own, with our account of them), `server` (starts
processes, by `forking`) and `channel` (speaks with them); a worker's side is `worker`; `loading` is
what both do with a dataset. `travel` and `ring` carry objects and arrays between them, and `plain`
finds the long lists that travel once for many epochs.
"""
