"""A fitted ensemble together with its networks, as one module."""
