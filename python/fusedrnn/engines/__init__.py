"""What computes: one interface, and an engine for the CPU and one for CUDA devices."""
