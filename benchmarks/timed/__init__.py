"""What is timed: providers in turns on the same inputs, by pytest-benchmark (``pytest benchmarks/timed``)."""
