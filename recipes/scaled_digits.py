"""scikit-learn's handwritten digits at the size of a network's images, for several recipes."""

import numpy as np
from numpy.typing import NDArray

TRAINING = 1200  # of the 1797 samples; the rest is held out


def digits() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """All 1797 images, shuffled, float32, (1797, 8, 8), from 0 to 1; and their classes, int32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.images))
    return (data.images[order] / 16).astype(np.float32), data.target[order].astype(np.int32)


def training(side: int, samples: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The first training images in colour, float32, (samples, side, side, 3), from -1 to 1."""
    images, labels = digits()
    return _colour(images[:samples], side), labels[:samples]


def calibration(side: int, samples: int) -> NDArray[np.float32]:
    """The last training images, float32, (samples, side, side, 3), from -1 to 1."""
    return _colour(digits()[0][TRAINING - samples : TRAINING], side)


def held_out(side: int, samples: int) -> NDArray[np.float32]:
    """Images that training never saw, float32, (samples, side, side, 3), from -1 to 1."""
    return _colour(digits()[0][TRAINING : TRAINING + samples], side)


def held_out_labels(samples: int) -> NDArray[np.int32]:
    """The digit on each of these images, int32, (samples,)."""
    return digits()[1][TRAINING : TRAINING + samples]


def resized(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Squares of another size, bilinear between the centres of pixels: (n, side, side)."""
    along = _bilinear(images.shape[1], side)
    return np.asarray(along @ images @ along.T, np.float32)


def _colour(images: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    grey = resized(images, side) * 2 - 1
    return np.repeat(grey[..., None], 3, axis=3)


def _bilinear(length: int, wanted: int) -> NDArray[np.float32]:
    """The matrix, (wanted, length), that resizes one axis."""
    at = np.clip((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0, length - 1)
    weights = 1 - np.abs(at[:, None] - np.arange(length))
    return np.clip(weights, 0, 1).astype(np.float32)
