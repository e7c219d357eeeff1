"""A GPU's time for an element of a kernel, from its instructions and the bytes it moves.

time = max(bytes / bandwidth, instructions / issue rate, instructions of a pipe / rate of the pipe)

An element-wise kernel keeps thousands of threads in flight, so the slowest resource sets the time:
the others, and all latencies, hide behind it. The share of the memory roof is the first term over
the maximum. What it leaves out makes it an upper bound: DRAM reaches some 90% of its data sheet,
the last wave of blocks is not full, and a launch takes microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU's numbers; `rates`: threads a clock and multiprocessor, by resource."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes a second
    rates: Mapping[str, int]
    shared: int  # bytes of a multiprocessor
    registers: int = 65536  # of a multiprocessor
    warps: int = 64  # of a multiprocessor, at most
    warp: int = 32

    def issued_a_byte(self) -> float:
        """Instructions that are issued while one byte moves."""
        return self.multiprocessors * self.rates["issue"] * self.clock / self.bandwidth


# Multiprocessors, clocks and bandwidths: data sheets of A100 80GB SXM (boost 1.41 GHz), H100 SXM5
# (1.98 GHz), B200 (no clock is published; 1.85 GHz is assumed), MI300X and MI355X (peak engine
# clocks). Rates: four schedulers of one warp instruction a clock each (tuning guides), and the
# table "Throughput of Native Arithmetic Instructions" of the CUDA C++ Programming Guide: "fma" is
# 32-bit floating-point multiply-add, "imad" 32-bit integer multiply-add, "alu" integer add, shift,
# compare and logic, "special" reciprocal roots and exponentials, "memory" the load and store units
# of the architecture white papers. IMAD runs on the pipe of FFMA (Nsight Compute's guide).
# Occupancy: table "Technical Specifications per Compute Capability" of the same guide.
_PIPES = {"issue": 128, "imad": 64, "alu": 64, "special": 16, "memory": 32}
GPUS = {
    "sm_80": Gpu("A100", 108, 1.41e9, 2.04e12, {**_PIPES, "fma": 64, "fp64": 32}, shared=164 << 10),
    "sm_90": Gpu(
        "H100", 132, 1.98e9, 3.35e12, {**_PIPES, "fma": 128, "fp64": 64}, shared=228 << 10
    ),
    "sm_100": Gpu(
        "B200", 148, 1.85e9, 8.0e12, {**_PIPES, "fma": 128, "fp64": 64}, shared=228 << 10
    ),
    # Four SIMDs of 16 lanes: an instruction of a wave of 64 takes four clocks (CDNA3 ISA guide).
    # Packed float32, two a lane, is not counted on. Registers: 512 of a lane, 8 waves a SIMD.
    "gfx942": Gpu("MI300X", 304, 2.1e9, 5.3e12, {"issue": 64}, 64 << 10, 131072, 32, 64),
    "gfx950": Gpu("MI355X", 256, 2.4e9, 8.0e12, {"issue": 64}, 160 << 10, 131072, 32, 64),
}


def occupancy(gpu: Gpu, registers: int, shared: int, threads: int) -> float:
    """The share of a multiprocessor's warps that fit its registers and shared memory."""
    warps = threads // gpu.warp
    step = 256 // gpu.warp  # registers are given to a warp by 256
    a_warp = max(-(-registers // step) * step, 1) * gpu.warp
    by_registers = gpu.registers // a_warp // warps
    by_shared = gpu.shared // (shared + 1024)  # CUDA keeps 1 kB of a block
    return min(by_registers, by_shared, gpu.warps // warps) * warps / gpu.warps


def predict(gpu: Gpu, nbytes: float, pipes: Mapping[str, float]) -> tuple[str, float]:
    """What binds, and the share of the memory roof; `pipes`: instructions an element."""
    used = {
        "issue": sum(pipes.values()),
        # Two floats an instruction: one is issued, and the pipe is taken to work on both.
        "fma": pipes.get("fp32", 0) + 2 * pipes.get("fp32x2", 0) + pipes.get("imad", 0),
        **{name: pipes.get(name, 0) for name in ("imad", "alu", "special", "memory", "fp64")},
    }
    memory = nbytes / gpu.bandwidth
    seconds = {
        name: used[name] / (gpu.multiprocessors * rate * gpu.clock)
        for name, rate in gpu.rates.items()
    }
    slowest = max(seconds, key=lambda name: seconds[name])
    if seconds[slowest] <= memory:
        return "memory", 1.0
    return slowest, memory / seconds[slowest]


def limit(gpu: Gpu, minimum: float, noise: str | None, dtype: str) -> float:
    """Most instructions an element that are accepted; `minimum`: bytes an element.

    Given noise, and on A100 and H100 noise drawn in float32, must hide behind the memory. Anything
    else may take 60 instructions where that is more.
    """
    budget = minimum * gpu.issued_a_byte()
    drawn_in_time = noise == "drawn" and dtype == "float32" and gpu.name in ("A100", "H100")
    return budget if noise == "explicit" or drawn_in_time else max(budget, 60.0)
