"""Stock layers: flax.linen's, lifted once; what linen lacks, beside them."""

from mapping.layers.convolution import Conv as Conv
from mapping.layers.dropout import Dropout as Dropout
from mapping.layers.linear import Dense as Dense
from mapping.layers.linen import Linen as Linen
from mapping.layers.normalization import BatchNorm as BatchNorm
from mapping.layers.pooling import AvgPool as AvgPool
from mapping.layers.pooling import MaxPool as MaxPool
from mapping.layers.shape import Flatten as Flatten
