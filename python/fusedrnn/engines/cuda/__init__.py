"""The CUDA engine's Python side: array -> check -> allocate -> call."""
