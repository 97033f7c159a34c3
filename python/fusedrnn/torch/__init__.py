"""torch.nn's recurrent modules on this library's engines, for CPU and for CUDA tensors.

`RNN`, `LSTM`, `GRU`, `RNNCell`, `LSTMCell` and `GRUCell` are subclasses of torch's modules of the same names, with the
same constructors, parameters, outputs, gradients and errors. `accelerate(model)` makes a model's modules of them.
`AttentionDecoder` is `fusedrnn.AttentionDecoder` under autograd. `grid_sample` samples images, `ctc_loss` and
`transducer_loss` are losses over label sequences.
"""

from fusedrnn.torch.attention import AttentionDecoder
from fusedrnn.torch.losses import ctc_loss, transducer_loss
from fusedrnn.torch.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fusedrnn.torch.sampling import grid_sample
from fusedrnn.torch.swap import Swap, accelerate, restore, why_not

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AttentionDecoder",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Swap",
    "accelerate",
    "ctc_loss",
    "grid_sample",
    "restore",
    "transducer_loss",
    "why_not",
]
