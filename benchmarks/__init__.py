"""Traffic, machine code and time: what the library claims, counted or measured."""
