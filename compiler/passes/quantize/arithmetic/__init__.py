"""Weights in few bits on their way to products, and what is emitted there."""
