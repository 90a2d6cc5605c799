"""tf2aif: one recipe beside a TensorFlow model becomes a verified variant for every machine."""

__version__ = "0.1.0"
