"""Training through rounding, and what becomes of it."""
