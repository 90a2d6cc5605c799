"""InceptionV3 with random weights and a fitted last layer: the model of `inception-v3.yaml`."""

from random_features import fit_last_layer, offset
from scaled_digits import training

SIDE = 139  # pixels: at 299, rounding to int8 changes a fifth of what random layers answer


def make(samples: int = 320):  # a Keras model
    """InceptionV3 (Szegedy et al., 2015); what is random is said in `random_features`."""
    import keras

    model = keras.applications.InceptionV3(
        weights=None, input_shape=(SIDE, SIDE, 3), classes=10, classifier_activation="softmax"
    )
    offset(one for one in model.layers if isinstance(one, keras.layers.BatchNormalization))
    fit_last_layer(model, *training(SIDE, samples))
    return model
