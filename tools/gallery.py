"""Run the examples that leave a picture, and write the pictures of docs/gallery.md again, small ones.

    python tools/gallery.py                        # all of them to their end: half an hour of processor time
    python tools/gallery.py draw recurrent_policy  # these
    python tools/gallery.py --quick --output DIRECTORY

A picture is replaced where its example ends with what it promises. The other examples are named, and the exit status is
1. What examples need, besides what `pip install ".[examples]"` brings, stands in examples/README.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "docs" / "gallery"
# A picture's name, and the example with its arguments.
RUNS = {
    "char_lm": ("char_lm.py",),
    "word_lm": ("word_lm.py",),
    "torch_speedup": ("torch_speedup.py",),
    "adding_problem": ("adding_problem.py",),
    "gradient_norms": ("gradient_norms.py",),
    "japanese_vowels": ("japanese_vowels.py",),
    "recurrent_policy": ("recurrent_policy.py",),
    "translate": ("translate.py",),
    "speech": ("speech.py",),
    "speech_streaming": ("speech_streaming.py",),
    "voice_activity": ("voice_activity.py",),
    "caption_soft": ("caption.py", "--attention", "soft"),
    "caption_hard": ("caption.py", "--attention", "hard"),
    "spatial_transformer": ("spatial_transformer.py",),
    "draw": ("draw.py",),
    "attention_beside_rnn": ("attention_beside_rnn.py",),
}
WIDTHS = (1400, 1100, 900, 700)  # pixels, the best first
PALETTES = (256, 128, 64)  # numbers of colours
LARGEST = 90_000  # bytes


class Ended(NamedTuple):
    """How an example ended: its exit status, and the seconds of processor time that it took."""

    status: int
    seconds: float


def small(path: Path) -> bytes:
    """The picture as a PNG of LARGEST bytes at most: the widest of WIDTHS, with as many colours as they hold."""
    with Image.open(path) as opened:
        # Transparent is white.
        image = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA")).convert("RGB")
    for width in WIDTHS:
        if image.width > width:
            image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        for colours in PALETTES:
            file = BytesIO()
            few = image.quantize(colours, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            few.save(file, "PNG", optimize=True)
            if file.tell() <= LARGEST:
                return file.getvalue()
    raise ValueError(f"{path.name}: {file.tell()} bytes when {WIDTHS[-1]} pixels wide, wanted at most {LARGEST}")


def run(command: list[str]) -> Ended:
    before = os.times()
    status = subprocess.run(command, check=False).returncode
    after = os.times()
    children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
    return Ended(status, children)


def renew(name: str, quick: bool, output: Path) -> Ended:
    """Run an example, and where it holds what it promises write its picture."""
    program, *options = RUNS[name]
    with tempfile.TemporaryDirectory() as directory:
        picture = Path(directory) / f"{name}.png"
        command = [sys.executable, str(ROOT / "examples" / program), *options, *["--quick"] * quick]
        ended = run([*command, "--output", str(picture)])
        if ended.status == 0:
            (output / picture.name).write_bytes(small(picture))
    return ended


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"(default: all) {', '.join(RUNS)}")
    parser.add_argument("--quick", action="store_true", help="the examples' smoke tests")
    parser.add_argument("--output", type=Path, default=GALLERY, help="the pictures' directory (default: docs/gallery)")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(RUNS):
        parser.error(f"argument NAME: no picture {', '.join(sorted(unknown))}; there are {', '.join(RUNS)}")
    if options.quick and options.output.resolve() == GALLERY:
        parser.error("argument --quick: the page has pictures of whole runs; give --output")
    options.output.mkdir(parents=True, exist_ok=True)
    ends = {}
    for name in options.names or RUNS:
        print(f"\n==== {' '.join(RUNS[name])}", flush=True)
        ends[name] = renew(name, options.quick, options.output)
    print(f"\n{'picture':<24}{'processor time':>16}{'exit status':>14}")
    for name, (status, seconds) in ends.items():
        print(f"{name:<24}{seconds:>14.0f} s{status:>14}")
    return 1 if any(status for status, _ in ends.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
