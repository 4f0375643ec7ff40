"""Bits where they matter: sensitivity, budgets, and the choice."""
