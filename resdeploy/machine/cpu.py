"""The CPU model and those of its instruction sets that affect how a network runs."""

from __future__ import annotations

from dataclasses import dataclass

from resdeploy.machine.host import Host

# The names that the Linux kernel prints: `flags` on x86, `Features` on Arm.
RELEVANT_FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
# On Arm the kernel prints two numbers, implementer and part, instead of a name. These are the CPUs
# of servers and Jetsons. Source: Linux v6.12, arch/arm64/include/asm/cputype.h.
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
    """A CPU as /proc/cpuinfo describes it."""

    architecture: str
    model: str | None
    features: frozenset[str]

    @property
    def multiplies_int8_matrices(self) -> bool:
        """Return True if the CPU has Intel's AMX for INT8."""
        return "amx_int8" in self.features

    @property
    def has_fast_bf16(self) -> bool:
        """Return True if bfloat16 products are faster than those of float32."""
        return bool({"avx512_bf16", "amx_bf16"} & self.features)


def parse_cpuinfo(text: str, architecture: str) -> Cpu:
    """Parse the first CPU in the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    listed = set((fields.get("flags") or fields.get("features") or "").split())
    return Cpu(
        architecture=architecture,
        model=fields.get("model name")
        or ARM_PARTS.get((fields.get("cpu implementer", ""), fields.get("cpu part", ""))),
        features=frozenset(listed.intersection(RELEVANT_FEATURES)),
    )


def read_cpu() -> Cpu:
    """Read this machine's CPU; it has no features if /proc/cpuinfo cannot be read."""
    host = Host()
    return parse_cpuinfo(host.text("proc/cpuinfo"), host.architecture)
