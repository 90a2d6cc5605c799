"""Recipes and targets: read, checked and frozen at the door."""
