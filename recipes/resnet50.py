"""ResNet50 with random weights and a fitted last layer: the model of `resnet50.yaml`."""

from random_features import fit_last_layer, offset
from scaled_digits import training

SIDE = 224  # pixels
# Of what each block adds to its input. At 1 sixteen random blocks mix all samples up; trained
# networks are started at 0 for the same reason (Goyal et al., 2017, section 5.1).
RESIDUAL = 0.2


def make(samples: int = 320):  # a Keras model
    """ResNet50 (He et al., 2015): what is random and what is fitted, `random_features` says."""
    import keras

    model = keras.applications.ResNet50(
        weights=None, input_shape=(SIDE, SIDE, 3), classes=10, classifier_activation="softmax"
    )
    offset(one for one in model.layers if one.name.endswith(("_1_bn", "_2_bn")))
    for layer in model.layers:
        if layer.name.endswith("_3_bn"):
            layer.gamma.assign(RESIDUAL * layer.gamma)
    fit_last_layer(model, *training(SIDE, samples))
    return model
