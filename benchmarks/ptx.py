"""Moved: :mod:`benchmarks.counted.ptx`."""

import sys

from benchmarks.counted import ptx

sys.modules[__name__] = ptx
