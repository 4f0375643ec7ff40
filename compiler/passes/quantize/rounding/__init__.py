"""Rounding that looks at what a weight is multiplied with."""

from compiler.passes.quantize.rounding.awq import Awq as Awq
from compiler.passes.quantize.rounding.awq import awq as awq
from compiler.passes.quantize.rounding.bias import CorrectBias as CorrectBias
from compiler.passes.quantize.rounding.bias import correct_bias as correct_bias
from compiler.passes.quantize.rounding.gptq import Gptq as Gptq
from compiler.passes.quantize.rounding.gptq import gptq as gptq
from compiler.passes.quantize.rounding.smooth import Smooth as Smooth
from compiler.passes.quantize.rounding.smooth import smooth as smooth
