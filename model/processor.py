"""What this machine's processor computes well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.errors import InputError

Precision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True)
class Processor:
    """What a node's processor is good for; see the functions of these names."""

    gains_by_bfloat16: bool
    multiplies_int8: bool


def read_processor() -> Processor:
    """This machine's."""
    return Processor(gains_by_bfloat16(), multiplies_int8())


def gains_by_bfloat16() -> bool:
    """Whether a network is faster in bfloat16 than in float32. By what the processor is, and not by a measurement: that
    could come out otherwise for the same run continued.

    With AMX it is, and with AVX-512 BF16 on AMD's processors, which make twice the products of float32 with it. Intel's
    without AMX make no more of them and convert besides. Elsewhere bfloat16 is emulated.
    """
    facts = _first_processor()
    flags = set(facts.get("flags", "").split())
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == "AuthenticAMD")


def multiplies_int8() -> bool:
    """Whether this processor multiplies 8-bit integers into sums of 32 bits (VNNI; AMX comes with it). Without, sums of
    two products are cut at 16 bits: slower, and wrong where they are large."""
    flags = _first_processor().get("flags", "").split()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def check_int8(device: str, has_vnni: bool) -> None:
    """Raises InputError where who scores can't compute in int8; `has_vnni` as `multiplies_int8`."""
    remedy = "use --precision auto"
    if device != "cpu":
        raise InputError(f"--precision int8: expected CPUs to score on, found GPUs; {remedy}")
    if not has_vnni:
        raise InputError(f"--precision int8: expected processors with VNNI, found one without; {remedy}")


def _first_processor() -> dict[str, str]:
    # /proc, not torch: torch.cpu has no public test for these units, and the driver of an audit needs no torch
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as text:  # noqa: PTH123
            lines = text.read().split("\n\n")[0].splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
