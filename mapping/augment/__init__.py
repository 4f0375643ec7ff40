"""Augmentations: mappings that change examples at random in training."""

from mapping.augment.shift import RandomShift as RandomShift
