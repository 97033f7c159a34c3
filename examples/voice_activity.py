"""Find speech with silero-vad's network, frame by frame, in NumPy and a fusedrnn stepper, beside onnxruntime.

The network (Silero Team, MIT) comes from its wheel: a Fourier transform and four convolutions, here in NumPy, then an
LSTM of 128 units, here a stepper, and a readout. Each frame of 32 ms runs through both; the probabilities must agree to
1e-5. The wheel's own dependencies are not needed:

    pip install --no-deps silero-vad==6.2.3
    python examples/voice_activity.py                          # speech of pocketsphinx-testdata or flite, if installed
    python examples/voice_activity.py --audio recording.wav    # 16 kHz, mono, 16 bits
    python examples/voice_activity.py --output speech.png      # a picture of sound and probabilities
    python examples/voice_activity.py --quick                  # the first three seconds
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

# Read when NumPy is first imported: products of a few rows are no work for a team.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

import fusedrnn as fr

RATE = 16000
FRAME = 512
CONTEXT = 64  # samples of the frame before that a frame begins with
WINDOW, HOP = 256, 128  # of the Fourier transform
FREQUENCIES = 129
STRIDES = (1, 2, 2, 1)  # of the convolutions, each of three taps, with one zero on each side
UNITS = 128
TOLERANCE = 1e-5
THRESHOLD = 0.5
QUICK_SECONDS = 3
TESTDATA = Path("/usr/share/pocketsphinx/test/data/librivox")
SENTENCE = "The quick brown fox jumps over the lazy dog. It does so every day."


class Missing(Exception):
    """What is not here, and how to get it."""


class Convolution:
    """A convolution over time with a ReLU, of one length: its windows are views of a padded buffer, made once."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, steps: int, stride: int) -> None:
        outputs, inputs, taps = weight.shape
        padded = np.zeros((steps + 2, inputs), np.float32)
        self.input = padded[1:-1]
        self.windows = np.lib.stride_tricks.sliding_window_view(padded.ravel(), taps * inputs)[:: stride * inputs]
        self.weight = np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(taps * inputs, outputs))
        self.bias = bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.input[...] = x
        y = self.windows @ self.weight
        y += self.bias
        return np.maximum(y, 0.0, out=y)


def initializers(path: Path) -> dict[str, np.ndarray]:
    """The weights of an ONNX model by their names."""
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        raise Missing("onnx, which reads the weights, is not installed; pip install onnx") from None
    return {tensor.name: to_array(tensor) for tensor in onnx.load(path).graph.initializer}


class VoiceActivity:
    """silero-vad at 16 kHz: called with one frame after another, gives the probability that each holds speech."""

    def __init__(self, path: Path) -> None:
        arrays = initializers(path)
        # A context, a frame, and a reflection of its end.
        self.samples = np.zeros(CONTEXT + FRAME + CONTEXT, np.float32)
        self.windows = np.lib.stride_tricks.sliding_window_view(self.samples, WINDOW)[::HOP]
        self.basis = np.ascontiguousarray(arrays["model.stft.forward_basis_buffer"][:, 0].T)
        steps, self.convolutions = len(self.windows), []
        for number, stride in enumerate(STRIDES):
            weight, bias = (arrays[f"model.encoder.{number}.reparam_conv.{kind}"] for kind in ("weight", "bias"))
            self.convolutions.append(Convolution(weight, bias, steps, stride))
            steps = len(self.convolutions[-1].windows)
        cell = fr.LSTMCell(UNITS, UNITS)
        cell.load_parameters(arrays, prefix="model.decoder.rnn.")
        lstm = fr.LSTM(UNITS, UNITS)
        lstm.load_parameters({f"{name}_l0": array for name, array in cell.parameters.items()})
        self.stepper = lstm.stream()
        self.readout = arrays["model.decoder.decoder.2.weight"].ravel()
        self.bias = float(arrays["model.decoder.decoder.2.bias"][0])

    def __call__(self, frame: np.ndarray) -> float:
        end = CONTEXT + FRAME
        self.samples[:CONTEXT] = self.samples[FRAME:end]
        self.samples[CONTEXT:end] = frame
        self.samples[end:] = self.samples[end - 2 : end - 2 - CONTEXT : -1]
        spectrum = self.windows @ self.basis
        spectrum *= spectrum
        x = np.sqrt(spectrum[:, :FREQUENCIES] + spectrum[:, FREQUENCIES:])
        for convolution in self.convolutions:
            x = convolution(x)
        h = self.stepper.step(x[0])
        return 1.0 / (1.0 + math.exp(-float(np.maximum(h, 0.0) @ self.readout) - self.bias))


class Onnxruntime:
    """The same network as the wheel's ONNX model."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise Missing("onnxruntime is not installed; pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {
            "input": np.zeros((1, CONTEXT + FRAME), np.float32),
            "state": np.zeros((2, 1, UNITS), np.float32),
            "sr": np.array(RATE, np.int64),
        }

    def __call__(self, frame: np.ndarray) -> float:
        samples = self.inputs["input"][0]
        samples[:CONTEXT] = samples[FRAME:]
        samples[CONTEXT:] = frame
        probability, self.inputs["state"] = self.session.run(None, self.inputs)
        return float(probability[0, 0])


def model_file() -> Path:
    """The ONNX model in the installed wheel, which is not imported: that would import torch."""
    spec = importlib.util.find_spec("silero_vad")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(place) / "data" / "silero_vad_16k_op15.onnx").is_file():
            return path
    raise Missing("silero-vad's wheel is not installed; pip install --no-deps silero-vad==6.2.3")


def read_wave(path: Path) -> np.ndarray:
    """Samples in [-1, 1) of a WAV file."""
    try:
        with wave.open(str(path)) as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
                raise Missing(f"{path} is not 16 kHz, mono, 16 bits; ffmpeg -i {path} -ar 16000 -ac 1 converted.wav")
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (OSError, EOFError, wave.Error) as error:
        raise Missing(f"{path} cannot be read as a WAV file: {error}") from None
    return samples.astype(np.float32) / 32768.0


def some_speech() -> tuple[np.ndarray, str]:
    """Speech that is at hand, with pauses of half a second, and where it is from."""
    recordings = sorted(TESTDATA.glob("*.wav"))
    pause = np.zeros(RATE // 2, np.float32)
    if recordings:
        parts = [part for path in recordings for part in (pause, read_wave(path))]
        return np.concatenate([*parts, pause]), f"{len(recordings)} readings of pocketsphinx-testdata"
    if flite := shutil.which("flite"):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "speech.wav"
            subprocess.run([flite, "-voice", "slt", "-t", SENTENCE, "-o", str(path)], check=True, capture_output=True)
            return np.concatenate([pause, read_wave(path), pause]), "flite"
    raise Missing("there is no speech at hand; apt install pocketsphinx-testdata (or flite), or give --audio FILE")


def run(audio: np.ndarray, ours: VoiceActivity, theirs: Onnxruntime) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (2, frames) of both, and the seconds that each took for each frame."""
    frames = np.pad(audio, (0, -len(audio) % FRAME)).reshape(-1, FRAME)
    probabilities, seconds = np.empty((2, len(frames))), np.empty((2, len(frames)))
    for n, frame in enumerate(tqdm(frames, unit="frame", desc="listening")):
        for k, model in enumerate((ours, theirs)):
            started = time.perf_counter()
            probabilities[k, n] = model(frame)
            seconds[k, n] = time.perf_counter() - started
    return probabilities, seconds


def spans(probabilities: np.ndarray) -> list[tuple[float, float]]:
    """Beginning and end in seconds of each run of frames that hold speech."""
    speech = np.concatenate([[False], probabilities > THRESHOLD, [False]])
    edges = np.flatnonzero(speech[1:] != speech[:-1]) * (FRAME / RATE)
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def draw(path: Path, audio: np.ndarray, probabilities: np.ndarray) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(np.arange(len(audio)) / RATE, audio, linewidth=0.3, color="tab:gray")
    above.set_ylabel("sound")
    moments = (np.arange(probabilities.shape[1]) + 1) * (FRAME / RATE)
    below.step(moments, probabilities[0], where="pre", label="fusedrnn and NumPy")
    below.plot(moments - FRAME / RATE / 2, probabilities[1], ".", markersize=2, label="onnxruntime")
    below.axhline(THRESHOLD, linewidth=0.5, color="black")
    below.set(xlabel="seconds", ylabel="probability of speech", ylim=(-0.03, 1.03))
    figure.legend(loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, metavar="WAV", help="16 kHz, mono, 16 bits (default: speech at hand)")
    parser.add_argument("--output", type=Path, metavar="PNG", help="write a picture")
    parser.add_argument("--quick", action="store_true", help=f"the first {QUICK_SECONDS} seconds, for a smoke test")
    options = parser.parse_args(arguments)
    fr.set_num_threads(1)
    try:
        model = model_file()
        ours, theirs = VoiceActivity(model), Onnxruntime(model)
        audio, source = (read_wave(options.audio), str(options.audio)) if options.audio else some_speech()
    except Missing as missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    if options.quick:
        audio = audio[: QUICK_SECONDS * RATE]
    if not len(audio):
        print(f"error: {source} holds no samples", file=sys.stderr)
        return 2

    probabilities, seconds = run(audio, ours, theirs)
    print(f"\n{len(audio) / RATE:.1f} s from {source}; speech at")
    print("  " + ", ".join(f"{begin:.1f}-{end:.1f}" for begin, end in spans(probabilities[0])) + " s")
    mine, other = np.median(seconds, axis=1) * 1e6
    print(f"\na frame of {FRAME / RATE * 1000:g} ms on one thread, median of {seconds.shape[1]}")
    print(f"  {'fusedrnn and NumPy':<28}{mine:.0f} us")
    print(f"  {'onnxruntime':<28}{other:.0f} us")
    if options.output:
        draw(options.output, audio, probabilities)
    difference = float(np.abs(probabilities[0] - probabilities[1]).max())
    print(f"\nlargest difference of the probabilities: {difference:.1e}")
    # Written so that nan misses.
    if not difference <= TOLERANCE:
        print(f"error: the probabilities differ by {difference:.1e}, wanted at most {TOLERANCE:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
