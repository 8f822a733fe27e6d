"""Choice of the torch device and of the precision by name, and how a process uses them."""

from __future__ import annotations

import os
import warnings

import torch

from masc_core.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BFLOAT16_CAPABILITY = (8, 0)  # Ampere; earlier GPUs only emulate it


def resolve_device(name: str) -> torch.device:
    """Return the device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``cuda`` is the first CUDA device, and so is ``auto``, or the CPU where there is none. A device
    that is not on this machine is a `ConfigError`.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device") from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device: {name!r} is neither cpu nor cuda")
    if device.type == "cpu":
        return device
    number = device.index or 0
    if number >= torch.cuda.device_count():
        raise ConfigError(f"device: {name!r} is not on this machine")
    return torch.device("cuda", number)


def use_device(device: torch.device) -> None:
    """Let this thread work on the device; every thread that does calls it.

    Streams, captured graphs and Triton's kernels go to the thread's current GPU, which is the first
    one until it is told otherwise, wherever the tensors lie.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Precision of that name; ``auto`` is bfloat16 where the device computes in it, else float32.

    GPUs do from compute capability 8.0 on. Of processors those do that have AVX512-BF16 or AMX:
    there a step reads half as much; the others emulate it, where it is asked for by name. On a GPU
    without it that is a `ConfigError`.
    """
    if name == "auto":
        name = "bfloat16" if has_bfloat16(device) else "float32"
    if name == "bfloat16" and device.type == "cuda" and not has_bfloat16(device):
        raise ConfigError("dtype: this GPU does not compute in bfloat16; float32 is what it can do")
    return DTYPES[name]


def gpu_has_bfloat16(capability: tuple[int, int]) -> bool:
    """Whether GPUs of a compute capability, (major, minor), compute in bfloat16."""
    return capability >= BFLOAT16_CAPABILITY


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than emulates it."""
    if device.type == "cuda":
        return gpu_has_bfloat16(torch.cuda.get_device_capability(device))
    return processor_has("avx512_bf16", "amx_bf16")


def processor_has(*names: str) -> bool:
    """Whether the processor has one of these abilities, by torch's names.

    Versions of torch that cannot tell know of none.
    """
    ask = getattr(torch.cpu, "get_capabilities", dict)
    capabilities: dict[str, bool] = ask()
    return any(capabilities.get(name, False) for name in names)


def enable_determinism() -> None:
    """Let the same work on a GPU have the same bits every time; call it before anything is there.

    cuBLAS needs a workspace of fixed size, cuDNN must not choose by the clock.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def disable_tf32() -> None:
    """Compute float32 products on a GPU with all bits: float32 is asked for where digits count.

    torch's compiler advises TF32, which keeps eleven bits of a number; its warning is silenced.
    """
    torch.set_float32_matmul_precision("highest")
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream of work beside the current one of a CUDA device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
