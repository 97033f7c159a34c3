"""Which x86-64 level a processor and its operating system can run: csrc/cpu/platform/processor.cpp."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from fusedrnn import _core

# From the x86-64 psABI, by level: of leaf 1 the bits of ECX, of leaf 7 those of EBX, of leaf 0x80000001 those of ECX,
# and the parts of XCR0 that the operating system has to have set.
REQUIRED = {
    2: {
        "leaf1_ecx": {"sse3": 0, "ssse3": 9, "cmpxchg16b": 13, "sse4_1": 19, "sse4_2": 20, "popcnt": 23},
        "extended_ecx": {"lahf": 0},
    },
    3: {
        "leaf1_ecx": {"fma": 12, "movbe": 22, "osxsave": 27, "avx": 28, "f16c": 29},
        "leaf7_ebx": {"bmi1": 3, "avx2": 5, "bmi2": 8},
        "extended_ecx": {"lzcnt": 5},
        "saved_state": {"xmm": 1, "ymm": 2},
    },
    4: {
        "leaf7_ebx": {"avx512f": 16, "avx512dq": 17, "avx512cd": 28, "avx512bw": 30, "avx512vl": 31},
        "saved_state": {"masks": 5, "upper zmm": 6, "zmm16 to 31": 7},
    },
}
BITS = [
    pytest.param(level, word, bit, id=f"{name}-v{level}")
    for level, words in REQUIRED.items()
    for word, bits in words.items()
    for name, bit in bits.items()
]

# What Linux calls the same features in /proc/cpuinfo, where it lists those that may be used.
LINUX_FLAGS = {
    2: "pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm",
    3: "fma movbe xsave avx f16c bmi1 avx2 bmi2 abm",
    4: "avx512f avx512dq avx512cd avx512bw avx512vl",
}


def features(level: int) -> dict[str, int]:
    """The registers of a processor that has what its level requires and nothing else."""
    registers = dict.fromkeys(("leaf1_ecx", "leaf7_ebx", "extended_ecx", "saved_state"), 0)
    for step in range(2, level + 1):
        for word, bits in REQUIRED[step].items():
            for bit in bits.values():
                registers[word] |= 1 << bit
    return registers


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_level_is_what_it_requires(level: int) -> None:
    assert _core.x86_level(**features(level)) == level


@pytest.mark.parametrize(("level", "word", "bit"), BITS)
def test_no_feature_of_a_level_may_be_missing(level: int, word: str, bit: int) -> None:
    everything = {"leaf1_ecx": 2**32 - 1, "leaf7_ebx": 2**32 - 1, "extended_ecx": 2**32 - 1, "saved_state": 2**64 - 1}
    assert _core.x86_level(**everything) == 4
    assert _core.x86_level(**{**everything, word: everything[word] & ~(1 << bit)}) == level - 1


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the levels are those of x86-64")
def test_the_levels_are_those_that_the_system_lists() -> None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), None)
    if found is None:
        pytest.skip("no /proc/cpuinfo with flags here")
    level = 1
    while level < 4 and found.issuperset(LINUX_FLAGS[level + 1].split()):
        level += 1
    assert _core.isas() == [f"x86-64-v{number}" for number in range(level, 1, -1)]
