"""The @triton.jit functions: pointers, strides and sizes, nothing else. Importing this needs Triton."""
