"""Optimizers: optax's transforms as they are, and descriptions of them by value.

>>> import optax
>>> adamw(1e-3, weight_decay=0.1) == Optimizer.of(optax.adamw, 1e-3, weight_decay=0.1)
True
>>> fine_tune = partition({"head/*": adam(1e-3), "*": freeze()})
"""

from mapping.optimizers.described import Described as Described
from mapping.optimizers.gradual import Gradual as Gradual
from mapping.optimizers.gradual import gradual as gradual
from mapping.optimizers.layerwise import LayerwiseDecay as LayerwiseDecay
from mapping.optimizers.layerwise import layerwise_decay as layerwise_decay
from mapping.optimizers.optimizer import Chain as Chain
from mapping.optimizers.optimizer import Optimizer as Optimizer
from mapping.optimizers.optimizer import as_transform as as_transform
from mapping.optimizers.partition import DecayMask as DecayMask
from mapping.optimizers.partition import Partition as Partition
from mapping.optimizers.partition import decay_mask as decay_mask
from mapping.optimizers.partition import freeze as freeze
from mapping.optimizers.partition import partition as partition
from mapping.optimizers.stock import adabelief as adabelief
from mapping.optimizers.stock import adafactor as adafactor
from mapping.optimizers.stock import adagrad as adagrad
from mapping.optimizers.stock import adam as adam
from mapping.optimizers.stock import adamax as adamax
from mapping.optimizers.stock import adamw as adamw
from mapping.optimizers.stock import amsgrad as amsgrad
from mapping.optimizers.stock import lamb as lamb
from mapping.optimizers.stock import lars as lars
from mapping.optimizers.stock import lion as lion
from mapping.optimizers.stock import muon as muon
from mapping.optimizers.stock import nadam as nadam
from mapping.optimizers.stock import nadamw as nadamw
from mapping.optimizers.stock import radam as radam
from mapping.optimizers.stock import rmsprop as rmsprop
from mapping.optimizers.stock import sgd as sgd
