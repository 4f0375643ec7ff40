"""Rematerialisation: less memory for gradients."""

from compiler.passes.remat.remat import Remat as Remat
from compiler.passes.remat.remat import remat as remat
