"""A CUDA driver that does nothing: Triton's own launcher runs all the way down to it, on a machine without a GPU.

No kernel is compiled, since none is run, and the tensors lie on the CPU. So what is left of a call is its host time,
and what it hands over can be looked at. It is for a process of its own, from its beginning, and for good.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

# As the driver's header has them: results are 0, success, and what is asked for is answered with something plausible.
SOURCE = r"""
#include <stddef.h>
typedef unsigned long long Address;
static unsigned long launches = 0;
unsigned long stub_launches(void) { return launches; }
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 232448; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxPushCurrent_v2(void *context) { return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = (void *)1; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }
int cuGetErrorString(int error, const char **text) { *text = "stub"; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)3; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)2; return 0; }
int cuModuleUnload(void *module) { return 0; }
int cuOccupancyMaxActiveClusters(int *clusters, void *function, void *config) { *clusters = 1; return 0; }
int cuPointerGetAttribute(Address *value, int attribute, Address address) { *value = address; return 0; }
int cuLaunchKernelEx(const void *config, void *function, void **arguments, void **extra) { launches++; return 0; }
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) { launches++; return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
"""
CAPABILITY = 90
PROPERTIES = {"max_shared_mem": 232448, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}


class NoCompilerError(RuntimeError):
    """Triton's launcher needs a C compiler, and so does this."""


def install() -> ctypes.CDLL:
    """Put the stub in the driver's place, and let blocks take CPU tensors for a GPU's; returns the stub.

    Raises:
        NoCompilerError: there is no C compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError("expected a C compiler (cc, gcc or clang, or one named by CC), found none")
    folder = Path(tempfile.mkdtemp(prefix="stub-driver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "stub.c").write_text(SOURCE)
    path = folder / "libcuda.so.1"
    words = [compiler, "-shared", "-fPIC", "-w", f"-Wl,-soname,{path.name}", "-o", str(path), "stub.c"]
    subprocess.run(words, cwd=folder, check=True)
    (folder / "libcuda.so").symlink_to(path.name)  # as Triton 3.4 links against it
    # By its name the loader finds it again for whatever is linked against the driver.
    stub = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    _use(folder)
    _compile_nothing(folder)
    return stub


def _compile_nothing(folder: Path) -> None:
    """Kernels become nothing, with what their launch must know of them; no cache but our own is to see them."""
    from triton import knobs
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.compiler import ASTSource

    def binary(_: Any, metadata: dict[str, Any]) -> bytes:
        metadata |= {"name": "stub", "shared": 0, "tmem_size": 0, "cluster_dims": (1, 1, 1), "tensordesc_meta": None}
        for kind in ("global", "profile"):
            metadata |= {f"{kind}_scratch_size": 0, f"{kind}_scratch_align": 1}
        return b"nothing"

    def add_stages(_: Any, stages: dict[str, Any], *__: Any) -> None:
        stages |= {"ttir": lambda *_: "", "cubin": binary}

    knobs.cache.dir = str(folder / "cache")
    ASTSource.make_ir = lambda *_, **__: ""
    CUDABackend.add_stages = add_stages


def _use(folder: Path) -> None:
    from triton import knobs

    knobs.nvidia.libcuda_path = str(folder)  # where the launcher's own compilation looks for the driver
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
    from triton.runtime import driver

    from triton_attn import backend
    from triton_attn.ops import launch

    class Driver:
        """Triton's for NVIDIA, but for what it asks PyTorch."""

        launcher_cls = CudaLauncher

        def __init__(self) -> None:
            self.utils = CudaUtils()
            self.utils.get_device_properties = lambda _: PROPERTIES

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", CAPABILITY, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def allocate_default_profile_scratch(self, *_: Any) -> None:
            return None

    def limits(device: torch.device, num_warps: int) -> dict[str, int]:  # noqa: ARG001
        return {"maxnreg": launch.register_limit(num_warps)}

    driver.set_active(Driver())
    launch.limits = limits
    backend.interpreting = lambda: True
