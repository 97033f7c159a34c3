"""Benchmark harness: fusedrnn beside the libraries a user would pick instead, in one process and one run.

Run it from the repository root as ``python -m bench``; ``python -m bench --help`` lists the options, and
``pytest bench/`` hands the cases of the tables train, infer and stack to pytest-benchmark.

The tables, by name:

* train, infer, stack: fusedrnn beside its peers, over cells, batch and hidden sizes.
* odd, ragged, denormal: what odd sizes, lengths and denormal numbers cost.
* resets: episodes that begin in mid-sequence, beside the ways torch's users have to run them.
* stream: one step at batch 1 from Python. first: the first call in a process.
* torch: modules of torch.nn as they are and swapped by fusedrnn.torch, beside the native call.
* memory: bytes of the tape, recompute, and the growth of a process over 200,000 steps.
* threads, isa: numbers of threads and processes; other instruction sets and float64, each beside its own peak.
* accuracy: errors against float64; nothing is timed.
* functions: what stands above the cells, beside what others run.

``python -m bench gpu --budget-seconds N`` measures the tables of a CUDA device instead; `bench.gpu` has its rules.

What is measured, and how it is kept fair:

* Every peer gets the same arrays: the same input, the same weights, the same incoming gradient. Before a case is
  timed, each peer's outputs are compared with those of the first peer; one that disagrees is reported as an error and
  not timed.
* Each peer is called the way its users call it. Inference keeps no graph (torch runs in ``inference_mode``). A training
  step is the forward and the backward pass down to the input and every weight, into fresh gradients each time. Results
  are dropped inside the timed span, so that a peer pays for freeing what it allocates, as it does in a loop.
* The peers are interleaved: in each round each of them runs once, in an order that rotates from round to round and is
  reversed in every second one. A peer's run is a burst of calls long enough for the clock, led by an untimed call.
  Between two peers the harness waits until no worker thread runs any more: idle pools spin for up to a tenth of a
  second, and would be charged to whoever comes next. Caches and memory are not scrubbed.
* All peers are held to the same number of threads, and to one stated allocator policy.
* A sample is the mean time of a call in one burst. The tables give the median over the rounds and the distance of the
  quartiles. ``--processes`` repeats the run in fresh processes and gives the median over them instead.
* Speeds stand beside what the machine allows, measured in the same run: the FMA peak, and at batch 1 from H = 256 on
  the time that reading W_hh in every step takes ("of reading W_hh"), or that and all other products at the peak ("of
  bound").
"""
