"""The networks of `benchmarks/build.py`: untrained, as the step's seed makes their weights."""


def lenet():  # a Keras model
    """LeNet-5 (LeCun et al., 1998) on images of 28 x 28 pixels: 0.06 million weights."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(6, 5, padding="same", activation="relu"),
            layers.AveragePooling2D(2),
            layers.Conv2D(16, 5, activation="relu"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(120, activation="relu"),
            layers.Dense(84, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def mobilenet_v2():  # a Keras model
    """MobileNetV2 on 224 x 224 pixels: 3.5 million weights."""
    import keras

    return keras.applications.MobileNetV2(weights=None)


def resnet50():  # a Keras model
    """ResNet50 on 224 x 224 pixels: 25.6 million weights."""
    import keras

    return keras.applications.ResNet50(weights=None)


def inception_v3():  # a Keras model
    """InceptionV3 on 299 x 299 pixels: 23.9 million weights."""
    import keras

    return keras.applications.InceptionV3(weights=None)
