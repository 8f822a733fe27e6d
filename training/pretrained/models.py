"""Models from the files of LlamaGen and GigaTok: sizes, read off the tensors, and weights.

Shapes tell everything but the number of heads, which the table of released sizes knows, and the
number of positions, which the rope table or the training's arguments have, if anything in the file
does. Tensors are taken as they are, in the precision of the file and where they are on the
disk: nothing is copied until it is used. Every name and shape is checked first.

Legend: V codes, E code dim, C width, L positions, D head dim.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.tensors import without_memory
from masc_core.models.gigatok import VIT_SIZES, GigaTokConfig, new_tokenizer
from masc_core.models.gpt import GPT, RopeTable
from masc_core.models.gpt_config import GPT_SIZES, GPTConfig, Positions
from masc_core.models.vq import VQConfig, VQModel
from training.pretrained.checkpoint_file import CheckpointFile
from training.pretrained.iar import CLUSTER_SIZE_ARGUMENT, renumber

Module = TypeVar("Module", bound=nn.Module)

# CFG scales that LlamaGen suggests for each size, and the default of its sampler for others; and
# those at which GigaTok begins to search, with the schedule "step".
GIGATOK_CFG = {"GPT-B": 2.5, "GPT-L": 1.75, "GPT-XL": 1.25, "GPT-XXL": 1.25}
SUGGESTED_CFG = {"GPT-B": 2.0, "GPT-L": 2.0, "GPT-XL": 1.75, "GPT-XXL": 1.75, "GPT-3B": 1.65}
OTHER_CFG = 1.5

CLASS_EMBEDDING = "cls_embedding.embedding_table.weight"
CODE_EMBEDDING = "tok_embeddings.weight"
POSITIONS = "positional_embedding"  # of GigaTok's transformers, which learn them
LATENT = "s2to1encoder.latent_token_positional_embedding"  # of GigaTok's 1-D tokenizers
CODEBOOK = "quantize.embedding.weight"
USAGE = "quantize.codebook_used"  # statistics of the training, which older files lack


def read_gpt_config(
    checkpoint: CheckpointFile, *, block_size: int, n_head: int | None = None
) -> GPTConfig:
    """Sizes of a class-conditional transformer of ``block_size`` L.

    ``n_head`` is needed where neither the file nor the table of released sizes has it.

    Raises
    ------
    ArtifactError : the file does not hold such a transformer, or one of another L
    ConfigError : the number of heads is not known, or the given one cannot be
    """
    if CLASS_EMBEDDING not in checkpoint.tensors and any(
        "cap_proj" in name for name in checkpoint.tensors
    ):
        raise ArtifactError(checkpoint.path, "is conditioned on text; only classes are served")
    vocab_size, dim = _shape(checkpoint, CODE_EMBEDDING, 2)
    num_rows = _shape(checkpoint, CLASS_EMBEDDING, 2)[0]
    if checkpoint.arguments.get("num_classes", num_rows - 1) == num_rows:
        raise ArtifactError(
            checkpoint.path, "has no null class: it cannot be guided, nor served (class dropout 0)"
        )
    positions: Positions = "learned" if POSITIONS in checkpoint.tensors else "rope2d"
    if positions == "learned" and (rows := _shape(checkpoint, POSITIONS, 2)[0]) != block_size + 1:
        raise ArtifactError(
            checkpoint.path, f"was trained on {rows - 1} positions an image, not {block_size}"
        )
    n_layer = _count(checkpoint.tensors, r"layers\.(\d+)\.")
    stored = _heads_of_rope_table(checkpoint, dim, block_size)
    known = {size[:2]: size[2] for size in GPT_SIZES.values()}.get((dim, n_layer))
    heads = n_head or stored or known
    if heads is None:
        raise ConfigError(
            f"n_head: must be given: {checkpoint.path} has {n_layer} layers of {dim} channels, "
            "which is none of LlamaGen's sizes, and weights do not tell their heads"
        )
    config = GPTConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layer=n_layer,
        n_head=heads,
        num_classes=num_rows - 1,
        block_size=block_size,
        positions=positions,
    )
    if known not in {None, heads}:
        raise ConfigError(
            f"n_head: {checkpoint.path} has the sizes of a model with {known} heads, not {heads}"
        )
    if stored not in {None, heads}:
        raise ConfigError(f"n_head: {checkpoint.path} has {stored} heads, not {heads}")
    return config


def read_image_size(checkpoint: CheckpointFile, given: int | None, factor: int) -> int:
    """Pixels a side of the images that a transformer was trained on; ``factor`` those of a code.

    Raises
    ------
    ConfigError : the file has another size than the given one, or there is neither
    """
    stored: int | None = None
    if isinstance(size := checkpoint.arguments.get("image_size"), int):
        stored = size
    if POSITIONS in checkpoint.tensors:
        stored = round((_shape(checkpoint, POSITIONS, 2)[0] - 1) ** 0.5) * factor
    if checkpoint.rope_shape is not None:
        stored = round((checkpoint.rope_shape[0] - 1) ** 0.5) * factor
    if given is None and stored is None:
        raise ConfigError(
            f"image_size: {checkpoint.path} does not tell it, nor do weights; LlamaGen's names end "
            "with it (256 or 384)"
        )
    if stored not in {None, given} and given is not None:
        raise ConfigError(
            f"image_size: {checkpoint.path} was trained on {stored} pixels, not {given}"
        )
    size = given or stored or 0
    if size < factor or size % factor:
        raise ConfigError(
            f"image_size: must be a multiple of {factor}, the pixels a side of one code, not {size}"
        )
    return size


def read_vq_config(checkpoint: CheckpointFile, heads: int | None = None) -> VQConfig:
    """Sizes of a tokenizer of either kind.

    ``heads`` are those of a 1-D tokenizer's transformers where the table of released sizes does
    not have them.

    Raises
    ------
    ArtifactError : the file does not hold a tokenizer
    ConfigError : the number of heads is not known, or given where there are none
    """
    tensors = checkpoint.tensors
    is_1d = LATENT in tensors
    if heads is not None and not is_1d:
        raise ConfigError(f"tokenizer_heads: {checkpoint.path} has no transformers")
    sizes = _latent_sizes(checkpoint, heads) if is_1d else {}
    num_codes, code_dim = _shape(checkpoint, CODEBOOK, 2)
    ch = _shape(checkpoint, "encoder.conv_in.weight", 4)[0]
    levels = _count(tensors, r"encoder\.conv_blocks\.(\d+)\.")
    widths = [
        _shape(checkpoint, f"encoder.conv_blocks.{i}.res.0.conv2.weight", 4)[0]
        for i in range(levels)
    ]
    try:
        return (GigaTokConfig if is_1d else VQConfig)(
            num_codes=num_codes,
            code_dim=code_dim,
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            num_res_blocks=_count(tensors, r"encoder\.conv_blocks\.0\.res\.(\d+)\."),
            z_channels=_shape(checkpoint, "post_quant_conv.weight", 4)[0],
            l2_norm=bool(checkpoint.arguments.get("codebook_l2_norm", True)),
            **sizes,
        )
    except ConfigError as error:
        maker = "GigaTok" if is_1d else "LlamaGen"
        raise ArtifactError(checkpoint.path, f"is no tokenizer of {maker}: {error}") from error


def _latent_sizes(checkpoint: CheckpointFile, heads: int | None) -> dict[str, Any]:
    """What a 1-D tokenizer has beside the sizes of others."""
    sizes: dict[str, Any] = {"latent_shape": (1, _shape(checkpoint, LATENT, 3)[0])}
    for part, module in (("encoder", "s2to1encoder"), ("decoder", "s1to2decoder")):
        width = _shape(checkpoint, f"{module}.{part}_embed.weight", 2)[0]
        layers = _count(checkpoint.tensors, rf"{module}\.transformer\.(\d+)\.")
        known = {size[:2]: size[2] for size in VIT_SIZES.values()}.get((width, layers), heads)
        if known is None:
            raise ConfigError(
                f"tokenizer_heads: must be given: {checkpoint.path} has a transformer of {layers} "
                f"layers of {width} channels, which is none of GigaTok's sizes"
            )
        values = {"width": width, "layers": layers, "heads": known}
        sizes |= {f"{part}_{name}": value for name, value in values.items()}
    return sizes


def check_pair(
    gpt: CheckpointFile, gpt_config: GPTConfig, vq: CheckpointFile, vq_config: VQConfig
) -> None:
    """Raise a `ConfigError` where a transformer was not trained on such a tokenizer's codes."""
    if gpt_config.vocab_size != vq_config.num_codes:
        raise ConfigError(
            f"tokenizer: {vq.path} has {vq_config.num_codes} codes, but {gpt.path} "
            f"predicts {gpt_config.vocab_size}"
        )
    is_1d = isinstance(vq_config, GigaTokConfig)
    if is_1d != (gpt_config.positions == "learned"):
        kinds = ("a sequence, as GigaTok", "a grid, as LlamaGen")
        made, predicted = kinds if is_1d else kinds[::-1]
        raise ConfigError(
            f"tokenizer: {vq.path} makes codes of {made} does, but {gpt.path} predicts {predicted}"
        )


def size_name(config: GPTConfig) -> str | None:
    """LlamaGen's name of the size; None for any other one."""
    sizes = (config.dim, config.n_layer, config.n_head)
    return next((name for name, known in GPT_SIZES.items() if known == sizes), None)


def gpt_of(checkpoint: CheckpointFile, config: GPTConfig, mapping: Tensor | None = None) -> GPT:
    """A transformer, in evaluation mode.

    Parameters
    ----------
    mapping : of a transformer of IAR, see `training.pretrained.iar`; its codes get the numbers of
        LlamaGen's tokenizer

    Raises
    ------
    ArtifactError : names a tensor that does not fit
    ConfigError : the codes have IAR's numbers and there is no mapping, or it is of other codes
    """
    if mapping is None and CLUSTER_SIZE_ARGUMENT in checkpoint.arguments:
        raise ConfigError(
            f"mapping: {checkpoint.path} has IAR's numbers of codes; masc models import takes it "
            "with --mapping, the file of IAR that renumbers them"
        )
    if mapping is not None and len(mapping) != config.vocab_size:
        raise ConfigError(
            f"mapping: is of {len(mapping)} codes, but {checkpoint.path} predicts "
            f"{config.vocab_size}"
        )
    with without_memory():
        empty = GPT(config)
    model = _filled(checkpoint, empty)
    model.rope = RopeTable(config)  # no weight, so not in the file
    if mapping is not None:
        renumber(model, mapping)
    return model.eval()


def tokenizer_of(checkpoint: CheckpointFile, config: VQConfig) -> VQModel:
    """A tokenizer, in evaluation mode; errors as for `gpt_of`."""
    with without_memory():
        empty = new_tokenizer(config)
    if USAGE not in checkpoint.tensors:
        used = empty.quantize.get_buffer("codebook_used")
        empty.quantize.codebook_used = torch.zeros(used.shape)
    return _filled(checkpoint, empty, optional=(USAGE,)).eval()


def _filled(checkpoint: CheckpointFile, module: Module, optional: tuple[str, ...] = ()) -> Module:
    expected, tensors = module.state_dict(), checkpoint.tensors
    for name, tensor in expected.items():
        if name not in tensors and name not in optional:
            raise ArtifactError(checkpoint.path, f"the tensor {name} is not in it")
        if name in tensors and tensors[name].shape != tensor.shape:
            raise ArtifactError(
                checkpoint.path,
                f"the tensor {name} has the shape {tuple(tensors[name].shape)}, "
                f"not {tuple(tensor.shape)}",
            )
    for name in tensors:
        if name not in expected:
            raise ArtifactError(checkpoint.path, f"the tensor {name} belongs to no part of it")
    module.load_state_dict(dict(tensors), strict=False, assign=True)
    return module.requires_grad_(requires_grad=False)


def _heads_of_rope_table(checkpoint: CheckpointFile, dim: int, block_size: int) -> int | None:
    """Heads, by the rope table (1 + L, D / 2, 2); None where the file has none."""
    table = checkpoint.rope_shape
    if table is None:
        return None
    if len(table) != 3 or table[1] < 1 or dim % (2 * table[1]):
        raise ArtifactError(checkpoint.path, "has a table of rotations of a wrong shape")
    if table[0] != block_size + 1:
        raise ArtifactError(
            checkpoint.path, f"was trained on {table[0] - 1} positions an image, not {block_size}"
        )
    return dim // (2 * table[1])


def _shape(checkpoint: CheckpointFile, name: str, dimensions: int) -> tuple[int, ...]:
    tensor = checkpoint.tensors.get(name)
    if tensor is None or tensor.dim() != dimensions or not tensor.numel():
        raise ArtifactError(checkpoint.path, f"holds no {name} with {dimensions} dimensions")
    return tuple(tensor.shape)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that names have in that place."""
    matches = (re.match(pattern, name) for name in tensors)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)
