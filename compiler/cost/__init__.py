"""Costs: arithmetic, bytes, memory, and the time they take at least on a machine."""

from compiler.cost.amount import Amount as Amount
from compiler.cost.amount import Cost as Cost
from compiler.cost.amount import within as within
from compiler.cost.arithmetic import Arithmetic as Arithmetic
from compiler.cost.arithmetic import arithmetic as arithmetic
from compiler.cost.arithmetic import equation_flops as equation_flops
from compiler.cost.count import cost as cost
from compiler.cost.machine import MACHINES as MACHINES
from compiler.cost.machine import Machine as Machine
from compiler.cost.machine import calibrate as calibrate
from compiler.cost.roofline import Roofline as Roofline
from compiler.cost.roofline import bound as bound
from compiler.cost.roofline import roofline as roofline
from compiler.cost.symbols import has_symbols as has_symbols
from compiler.cost.symbols import is_number as is_number
from compiler.cost.table import aligned as aligned
from compiler.cost.table import scaled as scaled
from compiler.cost.table import table as table
