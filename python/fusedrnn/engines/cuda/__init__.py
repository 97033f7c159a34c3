"""The CUDA engine's Python side: array -> check -> allocate -> call. No arithmetic on data, but for the softmax."""
