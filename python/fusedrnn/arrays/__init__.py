"""Arrays of the host and of CUDA devices: where they lie, what they are checked for, memory that a caller holds."""
