"""The tutorial's table, all 16 accuracies, on real MNIST and by every plan."""

import jax
import optax
import pytest
from helpers import slow

import feedax

# Accuracy on the training set and on the test set after each epoch.
TABLE = [*zip(*feedax.presets.TUTORIAL_TABLE.values(), strict=True)]


@pytest.mark.parametrize(
    ("plan", "num_workers", "epochs"),
    [("resident", 0, 1), slow("resident", 0, 8), slow("vectorised", 0, 8), slow("streamed", 2, 8)],
)
def test_the_tutorials_table(plan, num_workers, epochs, mnist_train, mnist_test):
    train = feedax.NumpyLoader(mnist_train, 128, plan=plan, num_workers=num_workers)
    assert train.plan().name == plan
    with jax.threefry_partitionable(False):
        params = feedax.init_network_params([784, 512, 512, 10], jax.random.PRNGKey(0))
    _, history = feedax.fit(
        feedax.predict,
        params,
        train,
        loss=feedax.tutorial_loss,
        optimizer=optax.sgd(0.01),
        epochs=epochs,
        # Evaluated from memory whatever the plan: this is about training.
        evaluate={
            "train": feedax.NumpyLoader(mnist_train, 1000),
            "test": feedax.NumpyLoader(mnist_test, 1000),
        },
    )
    ours = [(row["train_accuracy"], row["test_accuracy"]) for row in history]
    for row, expected in zip(ours, TABLE[:epochs], strict=True):
        assert row == pytest.approx(expected, rel=0, abs=0.0015)
