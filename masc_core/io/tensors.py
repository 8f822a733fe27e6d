"""Named tensors in one safetensors file: written whole or not at all, checked before they are used.

Weights may be stored in a lower precision than they are used in. All that reads raises an
`ArtifactError` where the file is missing, damaged or of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from masc_core.errors import ArtifactError
from masc_core.io.bounded import open_file
from masc_core.io.files import atomic_path, reading

MAX_HEADER_BYTES = 16 << 20  # a hundred thousand tensors
# Others are no weights, or cannot be converted without loss.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Module = TypeVar("Module", bound=nn.Module)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    header: dict[str, str] | None = None,
) -> None:
    """Write tensors, those of a floating-point type as ``dtype``, and strings about them.

    Without ``dtype`` all keep their own.

    Raises
    ------
    ArtifactError : a tensor has a NaN or an infinity, or gets one in that precision; or the file
        cannot be written
    """
    stored = {name: _converted(tensor, dtype) for name, tensor in tensors.items()}
    _refuse_first(path, stored, lambda k: _not_finite(stored[k]), f"is not finite in {dtype}")
    try:
        with atomic_path(path) as temporary:
            save_file(stored, temporary, metadata=header)
    except SafetensorError as error:
        raise ArtifactError(path, f"cannot be written: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, on the CPU, as they are stored."""
    with _reading(path):
        return load_file(path)


def read_header(path: Path) -> dict[str, str]:
    """Read the strings that `write_tensors` stored beside the tensors."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a file, by name; their content is not read."""
    with _reading(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def check_tensors_file(path: Path) -> None:
    """Raise an `OSError` or a `SafetensorError` unless safetensors may read a file's head."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise SafetensorError(f"its head is to have {length:,} bytes")


def load_module(path: Path, build: Callable[[], Module], optional: tuple[str, ...] = ()) -> Module:
    """Build a module without memory, and fill it as `fill_module` does; in evaluation mode."""
    with without_memory():
        module = build()
    return fill_module(path, module, optional).eval()


def fill_module(path: Path, module: Module, optional: tuple[str, ...] = ()) -> Module:
    """Fill a module with the tensors of a file, converted to the module's precision.

    Parameters
    ----------
    path : the file
    module : changed in place; on the meta device it gets memory, on the CPU, only after the
        shapes have been compared, so that a hostile configuration cannot exhaust it
    optional : names that the file may lack; they keep their values, zero after the meta device

    Raises
    ------
    ArtifactError : the file cannot be read, lacks a tensor, has a surplus one, one of another
        shape or type, or a NaN or an infinity; names the tensor
    """
    shapes, expected = read_shapes(path), module.state_dict()
    lacking = [name for name in expected if name not in shapes and name not in optional]
    if lacking:
        raise ArtifactError(path, f"the tensor {lacking[0]} is not in it")
    _refuse_first(path, shapes, lambda k: k not in expected, "belongs to no module")
    _refuse_first(path, shapes, lambda k: shapes[k] != expected[k].shape, "has a wrong shape")
    tensors = read_tensors(path)
    _refuse_first(
        path, tensors, lambda k: not _fits(tensors[k].dtype, expected[k]), "has a wrong type"
    )
    _refuse_first(path, tensors, lambda k: _not_finite(tensors[k]), "has a NaN or an infinity")
    if any(tensor.is_meta for tensor in expected.values()):
        module.to_empty(device="cpu")
        for name in set(expected) - set(tensors):
            module.state_dict()[name].zero_()
    module.load_state_dict(tensors, strict=False)
    return module


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules on the meta device, for `fill_module`; their values are not even drawn.

    To draw or to normalise there imports torch's compiler, which takes two seconds.
    """
    with torch.device("meta"), _WithoutValues():
        yield


class _WithoutValues(TorchFunctionMode):
    """Skips `torch.nn.init` and normalisation."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - of any function
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return args[0] if func is F.normalize else func(*args, **kwargs)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with reading(path):
            check_tensors_file(path)
            yield
    except SafetensorError as error:
        raise ArtifactError(path, f"cannot be read as safetensors: {error}") from error


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    wanted = dtype if dtype and tensor.is_floating_point() else tensor.dtype
    tensor = tensor.detach().to("cpu", wanted)
    # Safetensors stores plain row-major tensors, and refuses views that share memory.
    return tensor.clone(memory_format=torch.contiguous_format)


def _fits(dtype: torch.dtype, expected: Tensor) -> bool:
    return dtype in FLOATS if expected.is_floating_point() else dtype == expected.dtype


def _not_finite(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def _refuse_first(
    path: Path, names: Iterable[str], wrong: Callable[[str], bool], complaint: str
) -> None:
    for name in names:
        if wrong(name):
            raise ArtifactError(path, f"the tensor {name} {complaint}")
