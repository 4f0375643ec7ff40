"""Trees of arrays, addressed by path: select, change, split, join, compare, load.

>>> params = {"body": {"kernel": 1.0, "bias": 2.0}, "head": {"kernel": 3.0}}
>>> select(params).at("*/kernel").apply(lambda x: -x)
{'body': {'bias': 2.0, 'kernel': -1.0}, 'head': {'kernel': -3.0}}
"""

from mapping.paths import nearest as nearest
from mapping.tree.difference import Diff as Diff
from mapping.tree.difference import Difference as Difference
from mapping.tree.difference import diff as diff
from mapping.tree.loading import Loaded as Loaded
from mapping.tree.loading import load as load
from mapping.tree.merging import merge as merge
from mapping.tree.selection import Selection as Selection
from mapping.tree.selection import select as select
from mapping.tree.selector import matches as matches
from mapping.tree.surgery import Nested as Nested
