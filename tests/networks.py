"""Models for the layer graph: every kind of layer that there is, and layers that there are not."""

from __future__ import annotations

from typing import Any

import numpy as np

SEED = 11


def shaken(model: Any) -> Any:
    """The same model with normalisation and biases as training leaves them: not at their start."""
    generator = np.random.default_rng(SEED)
    for layer in model.layers:
        weights = layer.get_weights()
        if type(layer).__name__ == "BatchNormalization":
            shape = weights[0].shape
            weights = [generator.normal(1, 0.3, shape), *generator.normal(0, 0.3, (2, *shape))]
            weights.append(generator.uniform(0.3, 2, shape))
        elif type(layer).__name__ == "PReLU":
            weights = [generator.uniform(-0.5, 0.5, weights[0].shape)]
        elif len(weights) > 1:
            weights[-1] = generator.normal(0, 0.2, weights[-1].shape)
        layer.set_weights(weights)
    return model


def zoo() -> Any:
    """One branch or another has every layer; two outputs."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Rescaling(2.0, offset=-1.0)(image)
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(8, 3, strides=2)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.LeakyReLU(negative_slope=0.1)(layers.SeparableConv2D(8, 3, padding="same")(x))
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same")(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.BatchNormalization()(x))
    x = layers.Activation("hard_swish")(layers.AveragePooling2D(2)(x))
    x = layers.MaxPooling2D(3, strides=2)(layers.UpSampling2D(2, interpolation="bilinear")(x))
    x = layers.Conv2D(8, 3, padding="same", dilation_rate=2, activation="relu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Dense(8, activation="sigmoid")(gate)
    x = layers.Multiply()([layers.Activation("hard_sigmoid")(x), gate])
    x = layers.Add()([x, layers.Conv2D(8, 1)(x)])
    x = layers.Concatenate()([x, layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)])
    x = layers.UpSampling2D((1, 2))(x)
    flat = layers.Flatten()(layers.MaxPooling2D(2, padding="same")(x))
    top = layers.Reshape((4, 6))(layers.GlobalMaxPooling2D()(layers.Dense(24)(x)))
    value = layers.Dense(5, activation="tanh")(layers.Concatenate()([flat, layers.Flatten()(top)]))
    return shaken(keras.Model(image, [layers.Dense(3, activation="softmax")(value), value]))


def sequence() -> Any:
    """One-dimensional convolutions, and normalisation that no kernel takes in."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    return shaken(
        keras.Sequential(
            [
                keras.Input((20, 4)),
                layers.BatchNormalization(),
                layers.Conv1D(6, 3, padding="same"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.BatchNormalization(),
                layers.Conv1D(6, 3, strides=2, padding="same", activation="relu"),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3, activation="softmax"),
            ]
        )
    )


def two_inputs() -> Any:
    """A picture and a vector; an output that is used again."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    image, vector = keras.Input((8, 8, 1), name="image"), keras.Input((4,), name="vector")
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(image)
    x = layers.Concatenate()([layers.Flatten()(x), layers.Dense(6, activation="relu")(vector)])
    return shaken(keras.Model([image, vector], layers.Dense(2)(x)))


def chain() -> Any:
    """What a DPU computes from end to end, softmax apart: a small residual depthwise network."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.MaxPooling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 3, activation="relu")(x))
    return shaken(keras.Model(image, layers.Dense(4, activation="softmax")(x)))


def legacy() -> Any:
    """A model of Keras 2, whose normalisation is one operator."""
    import tf_keras

    tf_keras.utils.set_random_seed(SEED)
    layers = tf_keras.layers
    return shaken(
        tf_keras.Sequential(
            [
                layers.InputLayer((9, 9, 2)),
                layers.Conv2D(6, 3, padding="same"),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.UpSampling2D(2),
                layers.AveragePooling2D(3, strides=2, padding="same"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, name="scores"),
            ]
        )
    )


def volume() -> Any:
    """A 3-D convolution."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((6, 6, 6, 1)), layers.Conv3D(2, 3), layers.Flatten(), layers.Dense(2)]
    )


def recurrent() -> Any:
    """A GRU."""
    import keras

    keras.utils.set_random_seed(SEED)
    return keras.Sequential([keras.Input((5, 3)), keras.layers.GRU(4), keras.layers.Dense(2)])


NETWORKS = {f.__name__: f for f in (zoo, sequence, two_inputs, chain, legacy)}
"""Models that have layers."""


def attention() -> Any:
    """A product of two computed matrices."""
    import keras

    keras.utils.set_random_seed(SEED)
    x = keras.Input((4, 6))
    return keras.Model(x, keras.layers.Dot(2)([x, keras.layers.Dense(6)(x)]))


def elu() -> Any:
    """An activation that no accelerator here has."""
    import keras

    keras.utils.set_random_seed(SEED)
    layers = keras.layers
    return keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3, activation="elu")])


def prelu() -> Any:
    """A PReLU with a slope for each pixel."""
    import keras

    layers = keras.layers
    return shaken(keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3), layers.PReLU()]))


def grouped() -> Any:
    """A convolution in groups."""
    import keras

    return keras.Sequential([keras.Input((6, 6, 4)), keras.layers.Conv2D(4, 3, groups=2)])


REFUSED = {
    "volume": (volume, r"no operator: Conv3D \(Conv3D_0\)(.|\n)*3-D convolution"),
    "recurrent": (recurrent, r"no operator: .*While(.|\n)*GRU"),
    "attention": (attention, "no operator: BatchMatMulV2"),
    "elu": (elu, r"no operator: Elu \(Elu_0\)"),
    "prelu": (prelu, r"not one number for each channel(.|\n)*shared_axes"),
    "grouped": (grouped, r"no operator: StatefulPartitionedCall(.|\n)*convolution in groups"),
}
"""Models that have not, and what is said."""
