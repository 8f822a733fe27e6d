"""The manifest of a model bundle: what is in its folder, and everything needed to load it.

A bundle is one version of a model, ``<models>/<name>/<version>/``; docs/architecture.md has its
files. ``manifest.json`` is the last one written and lists every other with its SHA-256, so a bundle
without it, or that differs from it, was not published by us in this state. `write` makes bundles,
`read` makes models of them, `registry` knows which version of each is active.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from masc_core.errors import ArtifactError, ConfigError
from masc_core.escapes import MAX_NAME, quoted, shorten
from masc_core.io.bounded import MAX_CODES, parse_json, read_file
from masc_core.io.files import atomic_write, reading, sha256_file
from masc_core.models.completer_config import InputRows, Softmax
from masc_core.models.gpt_config import Positions
from masc_core.sampling.cfg_schedule import (
    DEFAULT_CFG_START,
    WITH_START,
    CFGSchedule,
    effective_schedule,
)
from masc_core.sampling.params import (
    CODE_SETTINGS,
    MAX_CFG_SCALE,
    Decoding,
    SamplingParams,
)

MANIFEST_FILE = "manifest.json"
TRANSFORMER_FILE = "transformer.safetensors"
TOKENIZER_FILE = "tokenizer.safetensors"
ENCODER_FILE = "encoder.safetensors"
PRIOR_FILE = "prior.npz"
COUNTS_FILE = "token_counts.safetensors"
REFINER_FILE = "refiner.safetensors"
COMPLETER_FILE = "completer.safetensors"
SAMPLES_FILE = "samples.png"

REQUIRED_FILES = (TRANSFORMER_FILE, TOKENIZER_FILE, PRIOR_FILE)
TREE_FILE = "tree.npy"
PATCHES_FILE = "patches.webp"
WEIGHT_SUFFIXES = {".safetensors", ".npz"}

# Fields that the first versions did not have; written only where they are not the default.
LATER_FIELDS = {
    "gpt": ("positions",),
    "defaults": ("cfg_schedule", "cfg_start", *CODE_SETTINGS, "cluster_top_k", "cluster_top_p"),
}

MAX_BYTES = 4 << 20  # of a manifest; as objects of Python it can take thirty times as much
MAX_FILES = 64
MAX_CLASSES = 1 << 16  # the largest sets of images that are in use have a third of it
# In UTC whatever the offset: beyond years 1 to 9999 there is no date.
FIRST_DATE, LAST_DATE = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
MAX_OTHER_BYTES = 256 << 20  # of a file of no known kind, and of a picture
OVERHEAD = 2 << 20  # of a file beyond its numbers

TokenizerKind = Literal["vq", "gigatok1d"]  # LlamaGen's, of grids; GigaTok's, of sequences


def partition_file(num_clusters: int) -> str:
    """File of a partition into so many clusters."""
    return f"partition-{num_clusters}.npz"


def is_plain_name(name: str) -> bool:
    """Whether a string is safe as one component of a path: ``[A-Za-z0-9._-]``, no leading dot."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", name) is not None


def _plain_name(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError(f"{quoted(name)} is not a plain name of letters, digits, '.', '_' and '-'")
    return name


def _without_control_characters(name: str) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", name):
        raise ValueError(f"{quoted(name)} has control characters")
    return name


ClassName = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_without_control_characters)]
ClassNames = Annotated[tuple[ClassName, ...], Field(min_length=1, max_length=MAX_CLASSES)]
PlainName = Annotated[str, AfterValidator(_plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# Of a request; defaults have no largest temperature.
CfgScale = Annotated[float, Field(ge=1.0, le=MAX_CFG_SCALE, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Temperature = Annotated[float, Field(gt=0, le=10.0, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GPTSection(_Part):
    """Sizes of the transformer; its vocabulary are the K clusters."""

    dim: int = Field(ge=1, le=1 << 16)
    n_layer: int = Field(ge=1, le=1 << 10)
    n_head: int = Field(ge=1, le=1 << 10)
    num_classes: int = Field(ge=1, le=MAX_CLASSES)
    block_size: int = Field(ge=1, le=1 << 16)
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_base: float = Field(default=10000.0, gt=0)
    positions: Positions = "rope2d"


class VQSection(_Part):
    """Sizes of the tokenizer; its codebook has V rows."""

    code_dim: int = Field(ge=1, le=1 << 16)
    ch: int = Field(ge=1, le=1 << 12)
    ch_mult: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field(min_length=1, max_length=10)
    num_res_blocks: int = Field(ge=1, le=64)
    z_channels: int = Field(ge=1, le=1 << 16)
    l2_norm: bool = True


class LatentSection(_Part):
    """Sizes of a 1-D tokenizer between its CNNs and its codes."""

    latent_shape: tuple[Literal[1], Annotated[int, Field(ge=4, le=1 << 16)]]
    encoder_width: int = Field(ge=1, le=1 << 16)
    encoder_layers: int = Field(ge=1, le=1 << 7)
    encoder_heads: int = Field(ge=1, le=1 << 10)
    decoder_width: int = Field(ge=1, le=1 << 16)
    decoder_layers: int = Field(ge=1, le=1 << 7)
    decoder_heads: int = Field(ge=1, le=1 << 10)


class RefinerSection(_Part):
    """Sizes of the refiner beyond those of the other models."""

    width: int = Field(ge=1, le=1 << 16)
    n_head: int = Field(ge=1, le=1 << 10)
    ffn_dim: int = Field(ge=1, le=1 << 18)
    autoregressive: bool = True


class CompleterSection(_Part):
    """Sizes of the completer beyond those of the other models, and what it scores."""

    dim: int = Field(ge=1, le=1 << 16)
    n_layer: int = Field(ge=1, le=1 << 10)
    n_head: int = Field(ge=1, le=1 << 10)
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_base: float = Field(default=10000.0, gt=0)
    positions: Positions = "rope2d"
    softmax: Softmax
    input_rows: InputRows


class Defaults(_Part):
    """Values of the fields that a request leaves out."""

    cfg_scale: CfgScale = 1.0
    temperature: float = Field(default=1.0, gt=0.0)
    top_k: TopK = 0
    top_p: TopP = 1.0
    decoding: Decoding = "uniform"
    cfg_schedule: CFGSchedule = "constant"
    cfg_start: Share = DEFAULT_CFG_START
    code_temperature: float = Field(default=1.0, gt=0.0)
    code_top_k: TopK = 0
    code_cfg_scale: CfgScale = 1.0
    cluster_top_k: TopK = 0
    cluster_top_p: TopP = 1.0


class ModelCard(_Part):
    """What the publisher states; the rest of a manifest follows from the files."""

    name: PlainName  # also its folder, in which each version has one
    version: PlainName
    created: AwareDatetime = Field(ge=FIRST_DATE, lt=LAST_DATE)
    class_names: ClassNames  # in the order of the class ids
    defaults: Defaults = Defaults()
    provenance: dict[str, JsonValue] = {}  # data, configurations, commits; free-form
    metrics: dict[str, JsonValue] = {}  # measured figures, free-form

    def class_ids(self, name: str) -> tuple[int, ...]:
        """Every class of that name, case and surrounding space ignored; several may share one."""
        wanted = name.strip().casefold()
        return tuple(i for i, known in enumerate(self.class_names) if known.casefold() == wanted)


class Manifest(ModelCard):
    """A model card, the sizes of the models, and the table of files."""

    schema_version: Literal[1] = 1
    gpt: GPTSection
    tokenizer: TokenizerKind = "vq"
    vq: VQSection
    latent: LatentSection | None = None
    refiner: RefinerSection | None = None
    completer: CompleterSection | None = None
    num_codes: int = Field(ge=2, le=MAX_CODES)  # V
    num_clusters: int = Field(ge=1, le=MAX_CODES)  # K
    grid: int = Field(ge=1)  # positions a side of an image
    image_size: int = Field(ge=1)  # pixels a side
    decodings: tuple[Decoding, ...] = Field(min_length=1)  # in-cluster, that the bundle offers
    files: dict[PlainName, Sha256] = Field(max_length=MAX_FILES)  # all but the manifest itself
    seal: Sha256 | None = None  # of everything else in the manifest; see `seal_of`

    @field_validator("files")
    @classmethod
    def _lists_what_is_needed(cls, files: dict[str, str]) -> dict[str, str]:
        for name in REQUIRED_FILES:
            if name not in files:
                raise ValueError(f"{name} is not listed")
        if MANIFEST_FILE in files:
            raise ValueError("a manifest cannot list itself")
        return files

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        checks = {
            "num_clusters exceeds num_codes": self.num_clusters > self.num_codes,
            "gpt.block_size is not grid * grid": self.gpt.block_size != self.grid**2,
            "image_size does not fit grid and vq.ch_mult": self.image_size
            != self.grid << (len(self.vq.ch_mult) - 1),
            "tokenizer gigatok1d and latent need each other": (self.latent is None)
            != (self.tokenizer == "vq"),
            "latent.latent_shape is not 1, grid * grid": self.latent_shape
            not in {(1, self.grid**2), (self.grid, self.grid)},
            "class_names are not gpt.num_classes": len(self.class_names) != self.gpt.num_classes,
            "defaults.decoding is not offered": self.defaults.decoding not in self.decodings,
            "defaults filter clusters of a partition, and there is none": not self.partitions
            and (self.defaults.cluster_top_k > 0 or self.defaults.cluster_top_p < 1),
            f"frequency decoding needs {COUNTS_FILE}": "frequency" in self.decodings
            and COUNTS_FILE not in self.files,
            f"refine decoding needs {REFINER_FILE}": "refine" in self.decodings
            and REFINER_FILE not in self.files,
            f"refiner and {REFINER_FILE} need each other": (self.refiner is None)
            == (REFINER_FILE in self.files),
            f"complete decoding needs {COMPLETER_FILE}": "complete" in self.decodings
            and COMPLETER_FILE not in self.files,
            f"completer and {COMPLETER_FILE} need each other": (self.completer is None)
            == (COMPLETER_FILE in self.files),
        }
        for reason, wrong in checks.items():
            if wrong:
                raise ValueError(reason)
        return self

    def max_bytes(self, name: str) -> int:
        """The most bytes that a listed file may have, by the sizes that are stated here.

        They bound what is read before anything is known of a file's content, so they are generous:
        eight bytes a number, and every convolution as wide as the widest.
        """
        gpt, vq, v, k = self.gpt, self.vq, self.num_codes, self.num_clusters
        channels = vq.ch * max(vq.ch_mult)
        blocks = len(vq.ch_mult) * (2 * vq.num_res_blocks + 3) + 4  # with two convolutions of 3x3
        convolutions = (
            blocks * channels * (25 * channels + 100)
            + 18 * channels * (vq.z_channels + 6)
            + 2 * (vq.z_channels + 1) * (vq.code_dim + 1)
        )

        def of_blocks(model: GPTSection | CompleterSection, rows: int) -> int:
            rows += gpt.num_classes + gpt.block_size + 3
            return model.dim * (rows + model.n_layer * (12 * model.dim + 1024))

        encoder = decoder = 0
        if (latent := self.latent) is not None:
            beside = latent.latent_shape[1] * 2 + vq.z_channels * 10 + 4  # a channel
            width, layers = latent.encoder_width, latent.encoder_layers
            encoder = width * (layers * (16 * width + 20) + beside + width)
            width, layers = latent.decoder_width, latent.decoder_layers
            decoder = width * (layers * (16 * width + 20) + beside)
            decoder += len(vq.ch_mult) * 2 * channels * (vq.z_channels + 1)
        numbers = {
            TRANSFORMER_FILE: of_blocks(gpt, 2 * k),
            TOKENIZER_FILE: convolutions + decoder + v * vq.code_dim,
            ENCODER_FILE: convolutions + encoder,
            PRIOR_FILE: v,
            COUNTS_FILE: v,
            TREE_FILE: 4 * v,
            PATCHES_FILE: 128 * v,  # 16 pixels a side, of four bytes
        } | {partition_file(clusters): v for clusters in self.partitions}
        if (refiner := self.refiner) is not None:
            tables = 2 * v + k + gpt.dim + gpt.block_size
            layer = 4 * refiner.width + 2 * refiner.ffn_dim + 16
            numbers[REFINER_FILE] = refiner.width * (tables + layer) + refiner.ffn_dim
        if self.completer is not None:
            numbers[COMPLETER_FILE] = of_blocks(self.completer, 2 * v)
        return 8 * numbers[name] + OVERHEAD if name in numbers else MAX_OTHER_BYTES

    @property
    def partitions(self) -> tuple[int, ...]:
        """Numbers of clusters of the loss's partitions, ascending.

        Entropies and filters of clusters are of the first.
        """
        found = (re.fullmatch(r"partition-([1-9][0-9]*)\.npz", name) for name in self.files)
        return tuple(sorted(int(match[1]) for match in found if match))

    @property
    def partitions_sha256(self) -> dict[str, str]:
        """SHA-256 of each partition's file, on which figures and filters of clusters depend."""
        return {name: self.files[name] for name in map(partition_file, self.partitions)}

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Rows and columns of an image's codes: those of the grid, or one row of latent tokens."""
        return (self.grid, self.grid) if self.latent is None else self.latent.latent_shape

    @property
    def shown_prior(self) -> str:
        """File of the clusters that the page shows: the prior; if flat, the finest partition."""
        if self.num_clusters == self.num_codes and self.partitions:
            return partition_file(self.partitions[-1])
        return PRIOR_FILE

    @property
    def num_positions(self) -> int:
        """L, the positions of an image."""
        return self.grid**2

    @property
    def weights_sha256(self) -> str:
        """One identifier of weights, prior and counts: what the images of a request depend on.

        The same as ``sha256sum prior.npz [!e]*.safetensors | LC_ALL=C sort -k2 | sha256sum``: no
        image depends on the encoder, nor on a partition but where its clusters are filtered.
        """
        others = {ENCODER_FILE, *self.partitions_sha256}
        lines = [
            f"{sha256}  {name}\n"
            for name, sha256 in sorted(self.files.items())
            if PurePath(name).suffix in WEIGHT_SUFFIXES and name not in others
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def tokenizer_sha256(self) -> str:
        """One identifier of the tokenizer: what the codes of an image depend on."""
        parts = [self.files[name] for name in (TOKENIZER_FILE, ENCODER_FILE) if name in self.files]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()

    def describe_image(self, params: SamplingParams) -> str:
        """What an image was made with, as JSON in ASCII, for its file.

        ``request`` is the body of a ``POST /generate`` that makes it again.
        """
        # Equal images are to have equal files: fields have one order, and beyond K top-k keeps all.
        request = {
            **{name: getattr(params, name) for name in ("class_id", "cfg_scale", "seed")},
            **dataclasses.asdict(params),
            "top_k": min(params.top_k, self.num_clusters),
            "cluster_top_k": min([params.cluster_top_k, *self.partitions]),
            "code_top_k": min(params.code_top_k, self.num_codes),
        }
        for name, off in {"cluster_top_k": 0, "cluster_top_p": 1.0}.items():
            if request[name] == off == getattr(self.defaults, name):
                del request[name]
        schedule = request["cfg_schedule"] = effective_schedule(
            params.cfg_scale, params.cfg_schedule
        )
        if schedule not in WITH_START:
            del request["cfg_start"]
        if schedule == self.defaults.cfg_schedule == "constant":
            del request["cfg_schedule"]
        if params.decoding != "complete":
            for name in CODE_SETTINGS:
                del request[name]
        return json.dumps(
            {
                "request": {"model": self.name, **request},
                "class_name": self.class_names[params.class_id],
                "version": self.version,
                "weights_sha256": self.weights_sha256,
            }
        )


def read_manifest(folder: str | PathLike[str]) -> Manifest:
    """Read ``manifest.json`` of a folder; an `ArtifactError` says in one line what is wrong."""
    path = Path(folder) / MANIFEST_FILE
    with reading(path):
        text = read_file(path, MAX_BYTES)
    return parse_manifest(text, path)


def parse_manifest(text: bytes, path: str | PathLike[str]) -> Manifest:
    """Read the content of a ``manifest.json``; errors as of `read_manifest` name the path."""
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(path, _first_fault(error)) from error
    try:
        seal = seal_of(parse_json(text))
    except ValueError as error:
        raise ArtifactError(path, f"is not JSON of text and figures: {error}") from error
    if manifest.seal != seal:
        raise ArtifactError(path, "was altered after it was published: its seal does not fit")
    return manifest


def check_class_names(names: Sequence[str], source: str) -> None:
    """Raise a `ConfigError` that begins with ``source`` unless a bundle can have such classes."""
    try:
        TypeAdapter(ClassNames).validate_python(tuple(names))
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_fault(error)}") from error


def write_manifest(folder: str | PathLike[str], manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` into a bundle's folder, sealed, in one step; return it as written."""
    # Absent parts are left out, so that older versions can read the manifest.
    optional = ("refiner", "completer", "latent")
    absent: dict[str, Any] = {name: True for name in optional if getattr(manifest, name) is None}
    if manifest.tokenizer == "vq":
        absent["tokenizer"] = True
    for name, later_fields in LATER_FIELDS.items():
        part = getattr(manifest, name)
        fields = type(part).model_fields
        absent[name] = {key for key in later_fields if getattr(part, key) == fields[key].default}
    path = Path(folder) / MANIFEST_FILE
    try:
        seal = seal_of(manifest.model_dump(mode="json", exclude=absent))
    except ValueError as error:
        raise ArtifactError(path, f"cannot be written: {error}") from error
    sealed = manifest.model_copy(update={"seal": seal})
    text = sealed.model_dump_json(indent=2, exclude=absent).encode() + b"\n"
    if len(text) > MAX_BYTES:
        raise ArtifactError(path, f"would have {len(text):,} bytes, more than {MAX_BYTES:,}")
    atomic_write(path, text)
    return sealed


def seal_of(content: Mapping[str, JsonValue]) -> str:
    """SHA-256 of a manifest's JSON without its seal, with sorted keys and no spaces.

    It is taken of what the file says, not of what this version understands, so that a manifest
    keeps its seal when later versions know more fields.
    """
    unsealed = {key: value for key, value in content.items() if key != "seal"}
    text = json.dumps(
        unsealed, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _first_fault(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(shorten(str(part), MAX_NAME) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def verify_files(folder: str | PathLike[str], manifest: Manifest) -> None:
    """Compare every listed file with its SHA-256; an `ArtifactError` names one that differs."""
    for name, expected in manifest.files.items():
        path = Path(folder) / name
        with reading(path):
            if not path.exists():
                raise ArtifactError(path, "is listed in the manifest but missing")
            check_hash(path, sha256_file(path, manifest.max_bytes(name)), expected)


def check_hash(path: str | PathLike[str], actual: str, expected: str) -> None:
    """Raise an `ArtifactError` unless a file's SHA-256 is what the manifest says."""
    if actual != expected:
        raise ArtifactError(
            path,
            "is truncated or altered: its SHA-256 is "
            f"{actual[:12]}…, the manifest says {expected[:12]}…",
        )
