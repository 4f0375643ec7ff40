"""Holding a mapping to the protocol: one call tries all that is promised of it."""

from mapping.testing.conformance import CLAIMS as CLAIMS
from mapping.testing.conformance import check as check
from mapping.testing.conformance import check_example as check_example
