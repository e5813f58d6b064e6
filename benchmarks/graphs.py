"""Moved: :mod:`benchmarks.counted.graphs`."""

import sys

from benchmarks.counted import graphs

sys.modules[__name__] = graphs
