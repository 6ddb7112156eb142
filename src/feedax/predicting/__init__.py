"""What `feedax predict` makes of a person's image.

- `feedax.predicting.image`: an image file, prepared as the training examples were.
- `feedax.predicting.ink`: what somebody wrote, found in a photograph of it.
- `feedax.predicting.shown`: what the network saw, drawn beside its probabilities.

Import what you need from its module: matplotlib is only loaded by the one that uses it.
"""
