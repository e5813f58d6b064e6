"""What is counted: the same every time, on any machine, with no GPU."""
