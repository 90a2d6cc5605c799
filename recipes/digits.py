"""LeNet-5 on scikit-learn's handwritten digits: the model and the data of `digits.yaml`."""

import numpy as np
from numpy.typing import NDArray

TRAINING = 1200  # of the 1797 samples; the rest is held out


def _digits() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16).astype(np.float32)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    return images[order], data.target.astype(np.int32)[order]


def train(epochs: int = 20):  # a Keras model
    """Train LeNet-5 (LeCun et al., 1998), sized for images of 8 x 8 pixels."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(6, 3, padding="same", activation="relu"),
            layers.AveragePooling2D(2),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    images, labels = _digits()
    model.fit(images[:TRAINING], labels[:TRAINING], batch_size=32, epochs=epochs, verbose=2)
    return model


def calibration() -> NDArray[np.float32]:
    """200 training images, float32, shape (200, 8, 8, 1), from 0 to 1."""
    return _digits()[0][:200]


def held_out() -> NDArray[np.float32]:
    """The 597 images that training never saw, float32, shape (597, 8, 8, 1)."""
    return _digits()[0][TRAINING:]


def held_out_labels() -> NDArray[np.int32]:
    """The digit on each held-out image, int32, shape (597,)."""
    return _digits()[1][TRAINING:]
