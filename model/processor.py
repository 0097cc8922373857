"""What this machine's processor computes natively."""

from __future__ import annotations


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16, AMX); emulated it is slower than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & _flags())


def _flags() -> set[str]:
    # /proc, not torch: torch.cpu has no public test for these units, and the driver of an audit needs no torch
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as text:  # noqa: PTH123
            return next((set(line.split()) for line in text if line.startswith("flags")), set())
    except FileNotFoundError:
        return set()
