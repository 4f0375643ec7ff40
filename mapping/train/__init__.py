"""Training: the step is a mapping, the loop runs it.

>>> import jax, numpy as np, optax, mapping as mp
>>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
>>> fitted = mp.train.fit(
...     mp.layers.Dense(1), (x, 3 * x), loss=mp.losses.MeanSquaredError(),
...     optimizer=optax.adam(0.1), epochs=60, batch_size=32)
>>> round(float(fitted.variables.params["kernel"][0, 0]), 1)
3.0
"""

from mapping.train.evaluate import evaluate as evaluate
from mapping.train.evaluate import predict as predict
from mapping.train.history import History as History
from mapping.train.loop import Fitted as Fitted
from mapping.train.loop import fit as fit
from mapping.train.step import TrainStep as TrainStep
