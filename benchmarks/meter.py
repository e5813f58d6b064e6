"""Moved: :mod:`benchmarks.counted.meter`."""

import sys

from benchmarks.counted import meter

sys.modules[__name__] = meter
