"""Parsing of /proc/cpuinfo as the Linux kernel prints it."""

from __future__ import annotations

import pytest

from resdeploy.machine.cpu import RELEVANT_FEATURES, parse_cpuinfo, read_cpu

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu avx2 avx512f avx512_vnni avx_vnni amx_bf16 amx_int8 avx512_bf16

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
HASWELL = "model name : Intel(R) Core(TM) i7-4770\nflags : fpu sse avx avx2\n"
ORIN = "processor : 0\nFeatures : fp asimd asimddp\nCPU implementer : 0x41\n"


def test_reads_the_first_processor() -> None:
    cpu = parse_cpuinfo(XEON, "x86_64")
    assert cpu.model == "Intel(R) Xeon(R) Platinum 8488C"
    assert cpu.features <= set(RELEVANT_FEATURES)
    assert cpu.has_fast_bf16


def test_an_older_processor_has_no_fast_bf16() -> None:
    cpu = parse_cpuinfo(HASWELL, "x86_64")
    assert cpu.architecture == "x86_64"
    assert not cpu.has_fast_bf16


def test_arm_has_features_without_a_name() -> None:
    cpu = parse_cpuinfo(ORIN, "aarch64")
    assert cpu.features == {"asimddp"}
    assert cpu.model is None


@pytest.mark.parametrize("text", ["", "\n\n", "no colon here", "flags", "flags :"])
def test_missing_fields_are_unknown(text: str) -> None:
    cpu = parse_cpuinfo(text, "x86_64")
    assert cpu.model is None
    assert cpu.features == frozenset()


def test_this_machine_can_be_read() -> None:
    assert read_cpu().architecture
