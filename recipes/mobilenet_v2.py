"""MobileNetV2, trained in a minute on digits of 96 x 96 pixels; for `mobilenet-v2.yaml`."""

from scaled_digits import TRAINING, training

SIDE = 96  # pixels


def train(width: float = 0.35, epochs: int = 8):  # a Keras model
    """Train MobileNetV2 (Sandler et al., 2018) of that width for ten classes."""
    import keras

    model = keras.applications.MobileNetV2((SIDE, SIDE, 3), width, weights=None, classes=10)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # 0.999 is for trainings a thousand times as long
    images, labels = training(SIDE, TRAINING)
    steps = epochs * TRAINING // 32
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=32, epochs=epochs, verbose=2)
    return model
