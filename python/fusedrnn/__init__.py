"""Recurrent networks at the speed of the hardware, without a framework.

Fused Elman, LSTM and GRU layers and cells, forward and backpropagation through time, over NumPy arrays
and, on a CUDA device, over CuPy arrays.
"""

from fusedrnn import init, optim
from fusedrnn.attention_decoder import AttentionDecoder, DecoderGradients
from fusedrnn.cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.gradients import Gradients, Norms
from fusedrnn.layers import GRU, LSTM, RNN
from fusedrnn.machine import get_num_threads, info, release_memory, set_num_threads
from fusedrnn.ops.additive_attention import (
    additive_attention,
    additive_attention_backward,
    additive_attention_forward,
)
from fusedrnn.ops.affine_grid import affine_grid, affine_grid_backward, affine_grid_forward
from fusedrnn.ops.ctc_loss import (
    ctc_align,
    ctc_beam_decode,
    ctc_greedy_decode,
    ctc_loss,
    ctc_loss_backward,
    ctc_loss_forward,
    ctc_spans,
)
from fusedrnn.ops.gaussian_read import gaussian_read, gaussian_read_backward, gaussian_read_forward
from fusedrnn.ops.gaussian_write import gaussian_write, gaussian_write_backward, gaussian_write_forward
from fusedrnn.ops.grid_sample import grid_sample, grid_sample_backward, grid_sample_forward
from fusedrnn.ops.linear import linear, linear_backward, linear_forward
from fusedrnn.ops.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
    readout_buffers,
)
from fusedrnn.ops.softmax import softmax, softmax_backward, softmax_forward
from fusedrnn.ops.transducer_loss import transducer_loss, transducer_loss_backward, transducer_loss_forward
from fusedrnn.search import beam_search, sample
from fusedrnn.training import clip_grad_norm, norm_buffers, tbptt_windows

from ._core import version as __version__

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AttentionDecoder",
    "DecoderGradients",
    "GRUCell",
    "Gradients",
    "LSTMCell",
    "Norms",
    "RNNCell",
    "__version__",
    "additive_attention",
    "additive_attention_backward",
    "additive_attention_forward",
    "affine_grid",
    "affine_grid_backward",
    "affine_grid_forward",
    "beam_search",
    "clip_grad_norm",
    "ctc_align",
    "ctc_beam_decode",
    "ctc_greedy_decode",
    "ctc_loss",
    "ctc_loss_backward",
    "ctc_loss_forward",
    "ctc_spans",
    "gaussian_read",
    "gaussian_read_backward",
    "gaussian_read_forward",
    "gaussian_write",
    "gaussian_write_backward",
    "gaussian_write_forward",
    "get_num_threads",
    "grid_sample",
    "grid_sample_backward",
    "grid_sample_forward",
    "info",
    "init",
    "linear",
    "linear_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "linear_cross_entropy_forward",
    "linear_forward",
    "norm_buffers",
    "optim",
    "readout_buffers",
    "release_memory",
    "sample",
    "set_num_threads",
    "softmax",
    "softmax_backward",
    "softmax_forward",
    "tbptt_windows",
    "transducer_loss",
    "transducer_loss_backward",
    "transducer_loss_forward",
]
