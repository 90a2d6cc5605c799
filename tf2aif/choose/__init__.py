"""Choosing between variants: the catalogue of what there is, fleets, objectives, the choice.

Nothing here imports TensorFlow or doit; what is chosen rests on records of measurements alone.
"""
