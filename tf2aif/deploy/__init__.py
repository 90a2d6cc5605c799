"""Kubernetes manifests of built variants: plain objects, or KServe's, as YAML for `kubectl apply`.

Nothing here speaks to a cluster. What goes into a manifest comes from the catalogue, measured, and
from the target; what nobody knows is left out and told.
"""
