"""Quantization: fewer bits for the same function."""

from compiler.passes.quantize.activations import Activations as Activations
from compiler.passes.quantize.calibrate import Calibration as Calibration
from compiler.passes.quantize.calibrate import calibrate as calibrate
from compiler.passes.quantize.convert import Convert as Convert
from compiler.passes.quantize.convert import convert as convert
from compiler.passes.quantize.coverage import Coverage as Coverage
from compiler.passes.quantize.coverage import coverage as coverage
from compiler.passes.quantize.dynamic import QuantizeDynamic as QuantizeDynamic
from compiler.passes.quantize.dynamic import dynamic as dynamic
from compiler.passes.quantize.rules import Rule as Rule
from compiler.passes.quantize.scheme import Scheme as Scheme
from compiler.passes.quantize.static import QuantizeStatic as QuantizeStatic
from compiler.passes.quantize.static import static as static
from compiler.passes.quantize.train import QuantizeTrain as QuantizeTrain
from compiler.passes.quantize.train import train as train
from compiler.passes.quantize.weights import QuantizeWeights as QuantizeWeights
from compiler.passes.quantize.weights import weights as weights
