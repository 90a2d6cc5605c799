"""Networks too large to train here, with a use for digits all the same.

Weights are drawn at random, as the recipe's seed says. The statistics of all batch
normalisations are those of a batch of digits, so that activations keep their scale to the last
layer, as in a trained network, and ranges for int8 mean something. The last layer is fitted in
closed form, by ridge regression on the features before it (Rahimi and Recht, 2008, for features
that are random). So a variant can be scored on samples with labels, and its work is the same as
with trained weights.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 16
RIDGE = 0.1  # of the features' mean square
SHARPNESS = 8.0  # the fitted scores are near 0 and 1: this makes probabilities of them
# Of what a batch normalisation adds. At 0 half of all activations are cut off, layer after layer,
# and what int8 rounds grows into another answer: random networks with small biases are chaotic,
# those with larger ones are not (Schoenholz et al., 2017).
OFFSET = 1.0


def fit_last_layer(model: Any, images: NDArray[np.float32], labels: NDArray[np.int32]) -> None:
    """Set statistics from the first images, then the last layer, a softmax, from all of them.

    Images are float32, (n, side, side, 3); labels are classes, int32, (n,).
    """
    import keras

    set_statistics(model, images[:BATCH])
    last = model.layers[-1]
    before = keras.Model(model.inputs, last.input)
    features = np.asarray(before.predict(images, batch_size=BATCH, verbose=2), np.float64)
    weights, bias = ridge(features, np.eye(last.units)[labels])
    last.set_weights([SHARPNESS * weights, SHARPNESS * bias])


def offset(layers: Iterable[Any]) -> None:
    """Have these batch normalisations add something, so that the network is not chaotic."""
    for layer in layers:
        layer.beta.assign(layer.beta + OFFSET)


def set_statistics(model: Any, images: NDArray[np.float32]) -> None:
    """Mean and variance of each batch normalisation, from one batch through the network."""
    import keras

    layers = [one for one in model.layers if isinstance(one, keras.layers.BatchNormalization)]
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(layers, kept, strict=True):
        layer.momentum = momentum


def ridge(
    features: NDArray[np.float64], wanted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (features, classes) and bias (classes,) of least squares with a penalty."""
    centre, level = features.mean(0), wanted.mean(0)
    centred = features - centre
    # With fewer samples than features the smaller of the two equal systems is solved.
    gram = centred @ centred.T
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = centred.T @ np.linalg.solve(gram, wanted - level)
    return weights, level - centre @ weights
