"""What the numbers depend on besides the code: the machine, the process's settings, and what else is running."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BUSY_SHARE = 0.05
"""Share of the machine's processor time that others may take before the harness warns."""

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

ALLOCATORS = {
    "keep": "freed memory stays with the process (mallopt: no mmap, no trim), so that no peer pays for fresh pages",
    "system": "the C library's defaults: freed blocks may go back to the system and cost fresh pages again",
}


def read(path: str) -> str:
    """The text of a file of the kernel's, or "" where there is none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def usable_cpus() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fix_threads(threads: int) -> None:
    """Tell the peers that read the environment once, when imported: OpenBLAS under NumPy, XLA under JAX."""
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    os.environ["NPROC"] = str(threads)


def fix_allocator(policy: str) -> str:
    """Set the allocator policy and say which one holds; elsewhere than on glibc it is always "system"."""
    if policy == "system" or platform.libc_ver()[0] != "glibc":
        return "system"
    mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    return "keep" if mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1) else "system"


def cpu_model() -> str:
    """The processor's name."""
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def caches() -> dict[str, str]:
    """Size of each cache the first processor sees."""
    found = {}
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = read(f"{entry}/type")
        if kind != "Instruction":
            found["L" + read(f"{entry}/level") + ("d" if kind == "Data" else "")] = read(f"{entry}/size")
    return found


def memory_gib() -> float | None:
    """Memory of the machine."""
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal"):
            return round(int(line.split()[1]) / 2**20, 1)
    return None


def resident_bytes(field: str) -> int:
    """Memory of this process that is in use, VmRSS, or the most that ever was, VmHWM."""
    for line in read("/proc/self/status").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell how much memory a process holds")


def openmp_runtimes() -> list[str]:
    """OpenMP libraries loaded into this process; two of them spin against each other."""
    mapped = {line.split()[-1] for line in read("/proc/self/maps").splitlines() if "/" in line}
    return sorted(Path(path).name for path in mapped if Path(path).name.startswith(("libgomp", "libomp", "libiomp")))


def machine() -> dict[str, object]:
    """Facts about the machine, none of which names it."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "caches": caches(),
        "memory_gib": memory_gib(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "transparent_hugepage": read("/sys/kernel/mm/transparent_hugepage/enabled") or None,
        "cgroup_cpu_max": read("/sys/fs/cgroup/cpu.max") or None,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "openmp_runtimes": openmp_runtimes(),
    }


def git_commit() -> str | None:
    """The commit measured, with "+changes" if the tree differs from it; None without git or outside a repository.

    For a copy without its repository, FUSEDRNN_COMMIT tells it.
    """
    if "FUSEDRNN_COMMIT" in os.environ:
        return os.environ["FUSEDRNN_COMMIT"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def variable_warnings() -> list[str]:
    """Warnings about variables that change how fast a peer is. To be asked before the harness sets its own.

    Their values are left out: they go into the JSON, and may hold paths.
    """
    prefixes = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "XLA_", "MALLOC_", "FUSEDRNN_")
    found = [name for name in sorted(os.environ) if name.startswith(prefixes)]
    warnings = [f"{name} is set and may change how fast the library or its peers are" for name in found]
    if "OPENBLAS_CORETYPE" in os.environ:
        warnings.append("OPENBLAS_CORETYPE can halve the speed of NumPy and OpenBLAS: unset it")
    return warnings


class ProcessorClock:
    """Processor time that was not ours, from the moment of construction on."""

    def __init__(self) -> None:
        self.begun = time.perf_counter()
        self.busy = self.busy_seconds()

    @staticmethod
    def busy_seconds() -> float:
        """Processor seconds the machine spent on others, stolen time included; constant where /proc/stat is missing."""
        fields = read("/proc/stat").partition("\n")[0].split()[1:9]
        if len(fields) < 8:
            return 0.0
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
        total = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return total - sum(os.times()[:4])  # ours, and that of child processes that have ended

    def share_of_others(self) -> float:
        """Part of the machine's processor time that others used since construction, between 0 and 1."""
        elapsed = (time.perf_counter() - self.begun) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (self.busy_seconds() - self.busy) / elapsed))


def busy_warnings(seconds: float = 0.5) -> list[str]:
    """Warnings if the machine is busy now, or was in the last minute."""
    clock = ProcessorClock()
    time.sleep(seconds)
    share, cpus, warnings = clock.share_of_others(), os.cpu_count() or 1, []
    if share > BUSY_SHARE:
        warnings.append(f"the machine is busy: others use {share:.0%} of its processors")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.25 * cpus:
        warnings.append(f"the load average is {os.getloadavg()[0]:.2f} on {cpus} processors")
    return warnings


def runtime_warnings() -> list[str]:
    """A warning if two OpenMP libraries are loaded. To be asked when the peers are imported."""
    loaded = openmp_runtimes()
    return [f"several OpenMP runtimes in one process: {', '.join(loaded)}"] if len(loaded) > 1 else []


def workers_running() -> bool:
    """Whether any thread but the main one is on a processor, or waiting for one."""
    main = str(os.getpid())
    for task in os.listdir("/proc/self/task"):
        state = read(f"/proc/self/task/{task}/stat").rpartition(")")[2].split()[:1]
        if task != main and state == ["R"]:
            return True
    return False


def settle(limit: float = 0.3, nap: float = 0.0005) -> None:
    """Wait until the worker threads of whoever ran last have stopped spinning.

    Idle workers spin for a while in the hope of more work: torch's were seen to for 4 ms, onnxruntime's for 28 ms,
    OpenBLAS's for 104 ms. On few processors that time would be taken from the next peer.
    """
    if not sys.platform.startswith("linux"):
        time.sleep(limit / 3)
        return
    deadline = time.perf_counter() + limit
    while workers_running() and time.perf_counter() < deadline:
        time.sleep(nap)
