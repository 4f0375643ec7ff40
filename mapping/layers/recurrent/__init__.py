"""Layers that read a sequence step by step: cells, and what runs them."""

from mapping.layers.recurrent.bidirectional import Bidirectional as Bidirectional
from mapping.layers.recurrent.cells import GRUCell as GRUCell
from mapping.layers.recurrent.cells import LSTMCell as LSTMCell
from mapping.layers.recurrent.cells import SimpleCell as SimpleCell
from mapping.layers.recurrent.unroll import Recurrent as Recurrent
