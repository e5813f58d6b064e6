"""Moved: :mod:`benchmarks.counted.interpreter`."""

import sys

from benchmarks.counted import interpreter

sys.modules[__name__] = interpreter
