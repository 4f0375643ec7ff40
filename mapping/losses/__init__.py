"""Losses: mappings from (prediction, target) to a scalar."""

from mapping.losses.binary import BinaryCrossEntropy as BinaryCrossEntropy
from mapping.losses.binary import BinaryFocal as BinaryFocal
from mapping.losses.binary import Hinge as Hinge
from mapping.losses.classes import CrossEntropy as CrossEntropy
from mapping.losses.classes import Focal as Focal
from mapping.losses.combine import Combine as Combine
from mapping.losses.ctc import CTC as CTC
from mapping.losses.divergence import KLDivergence as KLDivergence
from mapping.losses.embedding import Contrastive as Contrastive
from mapping.losses.embedding import CosineDistance as CosineDistance
from mapping.losses.embedding import NTXent as NTXent
from mapping.losses.embedding import Triplet as Triplet
from mapping.losses.loss import Loss as Loss
from mapping.losses.regression import Huber as Huber
from mapping.losses.regression import MeanAbsoluteError as MeanAbsoluteError
from mapping.losses.regression import MeanSquaredError as MeanSquaredError
