"""The tables of ``python -m bench gpu --budget-seconds N``: fusedrnn beside torch's cuDNN layers on a CUDA device.

Contestants: torch's layer, the same after ``fusedrnn.torch.accelerate``, and the native layer. Cases, problems,
comparison, rounds and report are the harness's own. Rows come in the order of their importance and end with the budget;
the JSON is written anew after each. Times are those of the device, between two events, over bursts of calls, the input
GEMM included. Bandwidth and the speed of matrix products are measured at the start of the same run.
"""
