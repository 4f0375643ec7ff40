"""Makes the zoo importable and gives each of its functions to tests that ask."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from zoo import ZOO


@functools.cache
def built(name):
    return ZOO[name]()


@pytest.fixture(params=ZOO, ids=lambda name: name.replace(" ", "-"))
def case(request):
    return built(request.param)
