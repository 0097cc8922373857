"""What this machine's processor computes well."""

from __future__ import annotations


def gains_by_bfloat16() -> bool:
    """Whether a network is faster in bfloat16 than in float32. By what the processor is, and not by a measurement: that
    could come out otherwise for the same run continued.

    With AMX it is, and with AVX-512 BF16 on AMD's processors, which make twice the products of float32 with it. Intel's
    without AMX make no more of them and convert besides. Elsewhere bfloat16 is emulated.
    """
    facts = _first_processor()
    flags = set(facts.get("flags", "").split())
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == "AuthenticAMD")


def _first_processor() -> dict[str, str]:
    # /proc, not torch: torch.cpu has no public test for these units, and the driver of an audit needs no torch
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as text:  # noqa: PTH123
            lines = text.read().split("\n\n")[0].splitlines()
    except FileNotFoundError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
