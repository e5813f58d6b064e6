"""This package as one of Hugging Face's ``kernels``: laid out as their builder and their loader ask."""
