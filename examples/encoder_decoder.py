"""Encoder and decoder of a translation: a bidirectional LSTM, and an LSTM with or without attention to it."""

from __future__ import annotations

from typing import Any

import numpy as np
from language_model import drawn_scale, sum_by_code
from parallel_text import END, PAD, START, batch

import fusedrnn as fr


class EncoderDecoder:
    """Predicts each symbol of a translation from the sentence and the symbols before it.

    The encoder's last states, forward and backward, go through a linear map into the decoder's first state. That is all
    the decoder knows of the sentence (Sutskever et al. 2014), unless it has `attention` to all of the encoder's states
    (Bahdanau et al. 2015).

    Parameters
    ----------
    symbols : (int, int)
        Codes of the sentence's language and of the translation's.
    hidden, embedding : int
        Units of the decoder and, in each direction, of the encoder; size of a symbol's vector.
    dropout : float
        Share of the numbers that training drops of a symbol's vector and before the readout.
    attention : bool
    seed : int
        Of the first weights and of what is dropped.
    """

    def __init__(
        self, symbols: tuple[int, int], *, hidden: int, embedding: int, dropout: float, attention: bool, seed: int
    ) -> None:
        self.generator = generator = np.random.default_rng(seed)
        self.hidden, self.dropout, self.attention = hidden, dropout, attention
        self.encoder = fr.LSTM(embedding, hidden, bidirectional=True, seed=seed)
        self.decoder: Any
        if attention:
            self.decoder = fr.AttentionDecoder(embedding, hidden, 2 * hidden, hidden, seed=seed + 1)
        else:
            self.decoder = fr.LSTM(embedding, hidden, seed=seed + 1)
        width = 3 * hidden if attention else hidden

        def uniform(*shape: int) -> np.ndarray:
            bound = shape[-1] ** -0.5
            return generator.uniform(-bound, bound, shape).astype(np.float32)

        self.own = {
            "source_embedding": generator.normal(0, 1, (symbols[0], embedding)).astype(np.float32),
            "target_embedding": generator.normal(0, 1, (symbols[1], embedding)).astype(np.float32),
            "bridge_weight": uniform(2 * hidden, 4 * hidden),
            "bridge_bias": np.zeros(2 * hidden, np.float32),
            "readout_weight": uniform(symbols[1], width),
            "readout_bias": np.zeros(symbols[1], np.float32),
        }
        self.parameters = {"own": self.own, "encoder": self.encoder.parameters, "decoder": self.decoder.parameters}

    def train_batch(self, sources: list[list[int]], targets: list[list[int]]) -> tuple[float, dict[str, Any]]:
        """Mean cross-entropy of a symbol in nats, and the gradients of `parameters`."""
        codes, lengths = batch(sources)
        embedded, scale = self._embedded("source_embedding", codes)
        memory, state, encoder_tape = self.encoder.forward(embedded, lengths=lengths)
        first, bridge_tape = fr.linear_forward(_joined(state), self.own["bridge_weight"], self.own["bridge_bias"])
        start = _state_of(first)
        loss, gradients, decoder = self._learn_to_decode(targets, memory, lengths, start)

        dh, dc = (part[0] for part in decoder.state)
        # h = tanh(its half of the map), which is start[0].
        dfirst = np.concatenate([dh * (1 - start[0][0] ** 2), dc], axis=1)
        dstate, gradients["bridge_weight"], gradients["bridge_bias"] = fr.linear_backward(bridge_tape, dfirst)
        parts = np.ascontiguousarray(dstate.reshape(len(sources), 4, self.hidden).transpose(1, 0, 2))
        dmemory = decoder.memory if self.attention else None
        encoder = self.encoder.backward(encoder_tape, dmemory, (parts[:2], parts[2:]))
        gradients["source_embedding"] = self._by_code("source_embedding", codes, encoder.x * scale)
        return loss, {"own": gradients, "encoder": encoder.parameters, "decoder": decoder.parameters}

    def _learn_to_decode(
        self, targets: list[list[int]], memory: np.ndarray, lengths: np.ndarray, start: tuple[np.ndarray, np.ndarray]
    ) -> tuple[float, dict[str, np.ndarray], Any]:
        """Loss; gradients of the translation's vectors and the readout; gradients that the decoder's layer gives."""
        before, steps = batch([[START, *target] for target in targets])
        after = batch([[*target, END] for target in targets])[0]
        embedded, scale = self._embedded("target_embedding", before)
        if self.attention:
            y, context, _, tape = self.decoder.forward(embedded, memory, lengths, start, lengths=steps)
            features = np.concatenate([y, context], axis=2)
        else:
            features, _, tape = self.decoder.forward(embedded, start, lengths=steps)
        kept = drawn_scale(self.generator, features.shape, self.dropout)
        loss, readout_tape = fr.linear_cross_entropy_forward(
            features * kept, self.own["readout_weight"], self.own["readout_bias"], after, ignore_index=PAD
        )
        dfeatures, dweight, dbias = fr.linear_cross_entropy_backward(readout_tape)
        widths = [self.hidden] if self.attention else []
        decoder = self.decoder.backward(tape, *map(np.ascontiguousarray, np.split(dfeatures * kept, widths, axis=2)))
        dembedding = self._by_code("target_embedding", before, decoder.x * scale)
        gradients = {"target_embedding": dembedding, "readout_weight": dweight, "readout_bias": dbias}
        return float(loss), gradients, decoder

    def _embedded(self, name: str, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of symbols, some of their numbers dropped; and what they were multiplied with."""
        vectors = self.own[name][codes]
        scale = drawn_scale(self.generator, vectors.shape, self.dropout)
        return vectors * scale, scale

    def _by_code(self, name: str, codes: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        return sum_by_code(codes.ravel(), gradient.reshape(codes.size, -1), len(self.own[name]))

    def translate(self, sources: list[list[int]], *, beam_width: int, max_steps: int) -> list[list[int]]:
        """The most probable translation of each sentence that a beam of that width finds; 1 is greedy."""
        found = fr.beam_search(
            self._step,
            self._decoding(sources),
            np.full(len(sources), START),
            end=END,
            beam_width=beam_width,
            max_steps=max_steps,
            length_penalty=0.6,
        )
        return [[int(code) for code in best[0][0] if code != END] for best in found]

    def attend(self, source: list[int], target: list[int]) -> np.ndarray:
        """The weights (T, S) of the sentence's symbols at each step of the translation."""
        memory, lengths, start = self._encode([source])
        embedded = self.own["target_embedding"][batch([[START, *target]])[0]]
        return self.decoder.forward(embedded, memory, lengths, start)[3].attention[:, 0]

    def _encode(self, sources: list[list[int]]) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        codes, lengths = batch(sources)
        memory, state = self.encoder(self.own["source_embedding"][codes], lengths=lengths)
        first = fr.linear(_joined(state), self.own["bridge_weight"], self.own["bridge_bias"])
        return memory, lengths, _state_of(first)

    def _decoding(self, sources: list[list[int]]) -> Any:
        memory, lengths, start = self._encode(sources)
        if not self.attention:
            return start[0][0], start[1][0]
        stepper = self.decoder.stream(memory, lengths)
        stepper.state = start
        return stepper

    def _step(self, tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        embedded = self.own["target_embedding"][tokens]
        if self.attention:
            features = np.concatenate(state.step(embedded), axis=1)
        else:
            y, (h, c) = self.decoder(embedded[None], (state[0][None], state[1][None]))
            features, state = y[0], (h[0], c[0])
        logits = fr.linear(features, self.own["readout_weight"], self.own["readout_bias"])
        return np.log(np.maximum(fr.softmax(logits), np.finfo(np.float32).tiny)), state


def _joined(state: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The encoder's last states, h and c of both directions, side by side."""
    return np.concatenate([*state[0], *state[1]], axis=1)


def _state_of(first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The decoder's first state, of what the linear map gives."""
    h, c = np.split(first, 2, axis=1)
    return np.tanh(h)[None], np.ascontiguousarray(c)[None]
