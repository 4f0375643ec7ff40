"""Depth pruning: residual blocks that disappear."""

from compiler.passes.prune.depth.blocks import Block as Block
from compiler.passes.prune.depth.blocks import Blocks as Blocks
from compiler.passes.prune.depth.blocks import blocks as blocks
from compiler.passes.prune.depth.carry import carry as carry
from compiler.passes.prune.depth.layers import PruneLayers as PruneLayers
from compiler.passes.prune.depth.layers import layers as layers
from compiler.passes.prune.depth.steps import Step as Step
from compiler.passes.prune.depth.steps import steps as steps
