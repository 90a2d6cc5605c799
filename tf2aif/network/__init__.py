"""The layer graph: from an imported TensorFlow graph to layers, and from layers to Keras.

Its structs, its reading and writing, and its arithmetic are in `tf2aif.engines`, which ships.
"""
