"""A user's code that goes wrong as it is told: samples, a score and models, for the tests."""

import ctypes
import os
import signal
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def samples(death="none"):
    """The calibration set, unless something happens on the way."""
    print(f"about to die of {death}", flush=True)
    if death == "segv":
        ctypes.string_at(0)
    if death == "exit":
        os._exit(7)
    if death == "sys-exit":
        raise SystemExit(9)
    if death == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if death == "abort":
        os.abort()
    if death == "memory":
        np.zeros(1 << 55, np.uint8)
    if death == "raise":
        raise RuntimeError("the sensor is off")
    return np.load(os.path.join(HERE, "calibration.npy"))


def hungry(outputs, labels):
    """Top-1, found with 600 MiB of memory that it really touches."""
    held = np.ones(600 << 20, np.uint8)
    time.sleep(0.5)
    return float(held[0] * (outputs.argmax(-1) == labels).mean())


def slow(outputs, labels):
    """Top-1, found in a long while."""
    print("scoring", flush=True)
    time.sleep(float(os.environ.get("NAP_S", "0")))
    return float((outputs.argmax(-1) == labels).mean())


def score(outputs, labels):
    """Top-1, found in a short while."""
    time.sleep(0.15)
    return float((outputs.argmax(-1) == labels).mean())


def unknown_operator():
    """A model with an operator that TensorFlow Lite does not have."""
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, name="x")])
        def __call__(self, x):
            return {"y": tf.math.digamma(x + 1.0)}

    return Model()


def crashing_model():
    """No model: native code that reads where it must not."""
    ctypes.string_at(0)
