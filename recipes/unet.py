"""A small U-Net that finds digits on a cluttered page: the model and the data of `unet.yaml`.

A page is made of scikit-learn's digits, scaled up and put down at random, over strokes that are
no digits; each pixel is labelled with the digit that it belongs to, or as background.
"""

import numpy as np
from numpy.typing import NDArray
from scaled_digits import TRAINING, digits, resized

SIDE = 64  # pixels of a page
DIGIT = 24  # pixels of a digit on it
DIGITS = 3  # on a page
BACKGROUND = 10  # the class after the ten digits
INK = 0.4  # from here on a pixel of a digit belongs to it

Pages = tuple[NDArray[np.float32], NDArray[np.uint8]]


def train(width: int = 16, pages: int = 800, epochs: int = 12):  # a Keras model
    """Train a U-Net (Ronneberger et al., 2015) of three levels; outputs (64, 64, 11) softmax."""
    import keras
    from keras import layers

    def block(x, filters: int):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        return x

    def up(x, across, filters: int):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        return block(layers.Concatenate()([across, x]), filters)

    page = keras.Input((SIDE, SIDE, 1), name="page")
    first = block(page, width)
    second = block(layers.MaxPooling2D(2)(first), 2 * width)
    third = block(layers.MaxPooling2D(2)(second), 4 * width)
    x = up(up(third, second, 2 * width), first, width)
    x = layers.Conv2D(BACKGROUND + 1, 1, activation="softmax", name="classes")(x)
    model = keras.Model(page, x)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * pages // 16)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(*_pages(pages, 0, TRAINING, seed=1), batch_size=16, epochs=epochs, verbose=2)
    return model


def calibration(pages: int = 60) -> NDArray[np.float32]:
    """Pages of training digits, float32, (pages, 64, 64, 1), from 0 to 1."""
    return _pages(pages, 0, TRAINING, seed=2)[0]


def held_out(pages: int = 100) -> NDArray[np.float32]:
    """Pages of digits that training never saw, float32, (pages, 64, 64, 1), from 0 to 1."""
    return _pages(pages, TRAINING, None, seed=3)[0]


def held_out_labels(pages: int = 100) -> NDArray[np.uint8]:
    """The class of each of their pixels, uint8, (pages, 64, 64): 0 to 9, or 10, background."""
    return _pages(pages, TRAINING, None, seed=3)[1]


def _pages(count: int, first: int, last: int | None, seed: int) -> Pages:
    """Pages with these digits, and their labels."""
    images, classes = digits()
    images, classes = resized(images[first:last], DIGIT), classes[first:last]
    generator = np.random.default_rng(seed)
    pages = np.stack([_clutter(generator) for _ in range(count)])
    labels = np.full(pages.shape, BACKGROUND, np.uint8)
    for page, label in zip(pages, labels, strict=True):
        for index in generator.integers(0, len(images), DIGITS):
            top, left = generator.integers(0, SIDE - DIGIT + 1, 2)
            rows, columns = slice(top, top + DIGIT), slice(left, left + DIGIT)
            np.maximum(page[rows, columns], images[index], out=page[rows, columns])
            label[rows, columns][images[index] > INK] = classes[index]
    return pages[..., None].astype(np.float32), labels


def _clutter(generator: np.random.Generator) -> NDArray[np.float32]:
    """A page of faint noise and a few straight strokes."""
    page = generator.uniform(0, 0.2, (SIDE, SIDE)).astype(np.float32)
    for _ in range(4):
        (y, x), angle = generator.uniform(0, SIDE, 2), generator.uniform(0, np.pi)
        along = np.arange(-10, 11)
        rows = np.clip(y + along * np.sin(angle), 0, SIDE - 1).astype(int)
        columns = np.clip(x + along * np.cos(angle), 0, SIDE - 1).astype(int)
        page[rows, columns] = 0.7
    return page
