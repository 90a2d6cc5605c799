"""Scripts that run in a vendor's own Python, alone: they import nothing of this package."""
