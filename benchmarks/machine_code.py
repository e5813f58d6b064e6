"""Moved: :mod:`benchmarks.counted.machine_code`."""

import sys

from benchmarks.counted import machine_code

sys.modules[__name__] = machine_code
