"""What the processor can do, as far as it decides how a network should run on it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Names as the Linux kernel prints them: x86 `flags`, Arm `Features`.
RELEVANT_FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
# Arm prints numbers instead of a name: implementer and part, of those in servers and on Jetsons.
# Source: Linux v6.12, arch/arm64/include/asm/cputype.h.
ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x004"): "Carmel",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One processor, as /proc/cpuinfo shows it."""

    architecture: str
    model: str | None
    features: frozenset[str]

    @property
    def is_x86(self) -> bool:
        return self.architecture in ("x86_64", "AMD64")

    @property
    def multiplies_int8_exactly(self) -> bool:
        """Whether u8 x s8 products are summed without saturating at 16 bits.

        x86 before VNNI has only VPMADDUBSW, which saturates; Arm has no such instruction.
        """
        return not self.is_x86 or bool({"avx_vnni", "avx512_vnni"} & self.features)

    @property
    def multiplies_int8_matrices(self) -> bool:
        """Whether it has Intel's AMX for INT8."""
        return "amx_int8" in self.features

    @property
    def has_fast_bf16(self) -> bool:
        """Whether bfloat16 products run at more than float32 speed."""
        return bool({"avx512_bf16", "amx_bf16"} & self.features)


def parse_cpuinfo(text: str, architecture: str) -> Cpu:
    """The first processor of a /proc/cpuinfo text; what it does not say is unknown."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    listed = set((fields.get("flags") or fields.get("features") or "").split())
    return Cpu(
        architecture=architecture,
        model=fields.get("model name") or _arm_model(fields),
        features=frozenset(listed.intersection(RELEVANT_FEATURES)),
    )


def _arm_model(fields: Mapping[str, str]) -> str | None:
    return ARM_PARTS.get((fields.get("cpu implementer", ""), fields.get("cpu part", "")))


def read_cpu() -> Cpu:
    """This machine's processor; without a readable /proc/cpuinfo, no features."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return parse_cpuinfo(text, platform.machine())
