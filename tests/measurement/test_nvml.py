"""The C interface, against a library compiled for the test: no GPU is needed, and none is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.measurement.nvml import NvmlGpu, NvmlUnavailable

SOURCE = """
#include <string.h>
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } process;
static int handle;
int nvmlInit_v2(void) { return 0; }
const char *nvmlErrorString(int code) { return code == 3 ? "Not Supported" : "Not Found"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (strcmp(uuid, "GPU-1")) return 6;
    *device = &handle;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    if (device != &handle) return 2;
    *millijoules = 5000000000123ULL;
    return ENERGY_CODE;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *found) {
    process running[] = {{FIRST, 1ULL << 40, 0xFFFFFFFF, 0xFFFFFFFF}, {7, 2, 0xFFFFFFFF, 0xFFFFFFFF}};
    if (device != &handle || *count < 2) return 7;
    memcpy(found, running, sizeof running);
    *count = 2;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    *reasons = 0x1 | 0x4 | 0x20 | 0x80;
    return 0;
}
"""


def library(folder: Path, first: int, energy_code: int = 0) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "nvml.c").write_text(SOURCE)
    built = folder / f"libnvml_{first}_{energy_code}.so"
    options = [f"-DFIRST={first}", f"-DENERGY_CODE={energy_code}", "-shared", "-fPIC", "-o", str(built)]
    subprocess.run([compiler, *options, str(folder / "nvml.c")], check=True)
    return str(built)


def test_answers(tmp_path: Path) -> None:
    gpu = NvmlGpu("GPU-1", library(tmp_path, os.getpid()))
    assert gpu.joules() == 5_000_000_000.123
    assert gpu.other_processes() == 1
    assert gpu.throttling() == {"software thermal slowdown", "power brake"}, "idle and the power limit are none"


def test_this_process_may_go_by_another_number(tmp_path: Path) -> None:
    assert NvmlGpu("GPU-1", library(tmp_path, 9)).other_processes() == 1


def test_no_answer_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NvmlUnavailable, match="no NVML library"):
        NvmlGpu("GPU-1", str(tmp_path / "libnothing.so"))
    with pytest.raises(NvmlUnavailable, match="nvmlDeviceGetHandleByUUID answers: Not Found"):
        NvmlGpu("GPU-2", library(tmp_path, 9))
    with pytest.raises(NvmlUnavailable, match="nvmlDeviceGetTotalEnergyConsumption answers: Not Supported"):
        NvmlGpu("GPU-1", library(tmp_path, 9, energy_code=3)).joules()
