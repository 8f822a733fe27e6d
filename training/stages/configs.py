"""The keys of every stage's configuration, which are also the options of its command.

Nothing here imports torch or NumPy, so that a command shows its help at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from masc_core.bundle.manifest import PlainName
from masc_core.clustering import METHODS
from masc_core.models.completer_config import InputRows, Softmax
from masc_core.models.gpt_config import Positions
from masc_core.sampling.cfg_schedule import CFGSchedule
from masc_core.sampling.params import MAX_CFG_SCALE, Decoding
from masc_core.settings import ModelsDir
from training.config import Frozen, ImageOptions, LoopConfig, MayChange, Source, StageConfig
from training.pretrained.released import RELEASED

# A comparison also has clusters of the sizes of the average-linkage cut with random members: what
# is left of its advantage then comes from its sizes alone.
CANDIDATES = (*METHODS, "average-shuffled")
DEFAULT_CANDIDATES = (
    *("average", "kmeans++", "kmeans", "ward", "complete", "single", "centroid"),
    *("balanced-kmeans", "random", "average-shuffled"),
)
WEIGHTS_HELP = "model, or ema, their moving average"
TOKENIZER_HEADS = "heads of a 1-D tokenizer's transformers, for a size that is not GigaTok's"
OR_ADDRESS = "a file, hf://owner/repo/file[@revision] or https://..."
LEAST_IMAGES = 4  # two to fit to and two to measure on: errors need two


class TokenizerTrainingConfig(LoopConfig, ImageOptions):
    """Keys of a tokenizer run."""

    data: MayChange[Path] = Field(
        description="training images: class folders, tar shards or parquet files"
    )
    val_data: MayChange[Path] = Field(description="validation images, likewise")
    val_images: int = Field(2000, ge=1, description="validation images, spread over the folder")
    decoder: MayChange[Path | None] = Field(
        None,
        description="tokenizer or bundle whose codebook and decoder stay as they are: an encoder "
        "is trained for them",
    )
    image_size: int = Field(64, ge=16, description="pixels a side, S")
    num_codes: int = Field(2048, ge=2, description="V")
    code_dim: int = Field(8, ge=1, description="E")
    ch: int = Field(32, ge=32)
    ch_mult: tuple[int, ...] = Field((1, 2, 2), description="channel multiplier of each level")
    num_res_blocks: int = Field(2, ge=1)
    z_channels: int = Field(64, ge=1)
    commitment: float = Field(0.25, ge=0)
    entropy_ratio: float = Field(0.0, ge=0, description="weight of the entropy loss; 0 is off")
    lpips_weight: float = Field(1.0, ge=0, description="weight of LPIPS; 0 is off")
    lpips_vgg: MayChange[Source | None] = Field(
        None, description=f"VGG16's weights, as torchvision has them; {OR_ADDRESS}"
    )
    lpips_linear: MayChange[Source | None] = Field(
        None, description=f"LPIPS's own weights, vgg.pth; {OR_ADDRESS}"
    )
    efficientnet_weight: float = Field(
        0.0,
        ge=0,
        description="weight of a perceptual distance in EfficientNet-Lite0's features, a "
        "substitute for LPIPS that needs the extra judge; 0 is off, 0.1 usual",
    )
    disc_weight: float = Field(0.0, ge=0, description="weight of the GAN; 0 is off, 0.5 usual")
    disc_start: int = Field(20000, ge=1, description="step from which on the GAN takes part")
    disc_loss: Literal["hinge", "non-saturating"] = Field(
        "hinge", description="hinge or non-saturating"
    )
    disc_adaptive: bool = Field(
        default=False, description="balance the GAN's gradient at the last layer"
    )
    disc_channels: int = Field(64, ge=1, description="channels of the discriminator's first layer")
    disc_layers: int = Field(3, ge=1, description="strided layers of the discriminator")
    keep: Literal["psnr", "lpips", "last"] | None = Field(
        None,
        description="which weights to keep: those best by psnr or lpips, or the last ones "
        "(default: psnr; last with a GAN, which makes images better and PSNR worse)",
    )
    crop: Literal["center", "random"] = Field(
        "center", description="of training images: center, or random between 80 and 100 % of them"
    )
    flip: bool = Field(default=True, description="mirror training images at random")
    restart_codes_every: int = Field(
        0, ge=0, description="steps after which unused codes restart; 0 is never"
    )
    restart_codes_until: float = Field(
        0.8, ge=0, le=1, description="share of the run after which no code restarts any more"
    )

    @property
    def lpips_sources(self) -> dict[str, str]:
        """The files that LPIPS needs, by key; empty when it is off."""
        if self.lpips_vgg is None or self.lpips_linear is None or not self.lpips_weight:
            return {}
        return {"lpips_vgg": self.lpips_vgg, "lpips_linear": self.lpips_linear}

    @property
    def criterion(self) -> Literal["psnr", "lpips", "last"]:
        """What decides which weights are kept."""
        return self.keep or ("last" if self.disc_weight else "psnr")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.decoder is not None and self.disc_weight:
            raise ValueError("disc_weight: must be 0 with a decoder, whose images a GAN improves")
        if (self.lpips_vgg is None) != (self.lpips_linear is None):
            raise ValueError("lpips_vgg and lpips_linear: LPIPS needs both files")
        if self.keep == "lpips" and not self.lpips_sources:
            raise ValueError("keep: lpips needs lpips_vgg, lpips_linear and an lpips_weight")
        return self


class CodesConfig(StageConfig, ImageOptions):
    """Keys of a code extraction."""

    tokenizer: Path = Field(
        description="tokenizer.safetensors, its run, or the folder of a bundle that has the encoder"
    )
    data: Path = Field(description="images: class folders, tar shards or parquet files")
    image_size: int = Field(64, ge=8)
    variants: Literal["none", "flip", "ten_crop"] = Field(
        "flip", description="of each image: none (itself), flip (and mirrored) or ten_crop"
    )
    crop_range: float = Field(
        1.1, ge=1, lt=2, description="the ten crops are cut from images so many times their size"
    )
    batch_size: int = Field(64, ge=1)
    shard_images: int = Field(8192, ge=1, description="images a shard")


class PriorConfig(StageConfig):
    """Keys of a prior."""

    tokenizer: Path = Field(
        description="tokenizer.safetensors, its run, the folder of a bundle, or a codebook (V, E) "
        "as .npy"
    )
    num_clusters: int = Field(ge=1, description="K")
    method: str = Field("average", description=f"one of {', '.join(METHODS)}")
    raw_rows: bool = Field(
        default=False, description="cluster the rows as stored, not the normalised ones codes mean"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="seed of what is random in the method")

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
        return method


class ImportPriorConfig(Frozen):
    """Keys of the import of IAR's clusters."""

    source: Source = Field(description=f"IAR's mapping, .pt; {OR_ADDRESS}")
    out: Path = Field(description="folder of the prior that this becomes")
    cluster_size: int = Field(128, ge=1, description="codes of each cluster")


class CompareConfig(StageConfig, ImageOptions):
    """Keys of a comparison."""

    tokenizer: Path = Field(
        description="tokenizer.safetensors, its run, or the folder of a bundle with an encoder"
    )
    images: Path = Field(
        description="images to measure on: class folders, tar shards or parquet files"
    )
    codes: Path | None = Field(
        None, description="code cache of the training images; without it half of the images serve"
    )
    methods: tuple[str, ...] = Field(
        DEFAULT_CANDIDATES,
        description="ways to make a prior; the others are held against the first",
    )
    num_clusters: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="one K or several; without it V/2, V/4 and V/8"
    )
    priors: tuple[Path, ...] = Field(
        (),
        description="further priors: runs, bundles, files, or IAR's mapping, .pt, of 128 a cluster",
    )
    image_size: int = Field(64, ge=11)
    max_images: int = Field(
        1000, ge=LEAST_IMAGES, description="images to read, spread over the folder"
    )
    draws: int = Field(3, ge=2, description="times that all codes are replaced")
    positions: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (),
        description="first position whose codes are replaced, and the one behind the last, as of a "
        "group of GigaTok's tokens; all without it",
    )
    raw_rows: bool = Field(
        default=False, description="cluster the rows as stored, not the normalised ones codes mean"
    )
    seed: int = Field(
        0, ge=0, lt=1 << 32, description="seed of what is random in the methods, and of the draws"
    )

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for method in methods:
            if method not in CANDIDATES:
                raise ValueError(f"no method {method!r}; there are {', '.join(CANDIDATES)}")
        return methods

    @field_validator("positions")
    @classmethod
    def _ascending(cls, positions: tuple[int, ...]) -> tuple[int, ...]:
        if positions and (len(positions) != 2 or positions[0] >= positions[1]):
            raise ValueError("must be two numbers, the first the smaller one")
        return positions

    @field_validator("methods", "num_clusters", "priors")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(dict.fromkeys(values))


class ShowConfig(StageConfig):
    """Keys of the pictures of a prior."""

    tokenizer: Path = Field(description="tokenizer.safetensors, its run, or the folder of a bundle")
    prior: Path | None = Field(
        None,
        description="prior run, another bundle, a prior's file, or IAR's mapping, .pt, of 128 a "
        "cluster; without it "
        "the bundle's prior, or its finest partition where that is flat",
    )
    raw_rows: bool = Field(
        default=False,
        description="where there is no tree.npz: build it over the rows as stored, not normalised",
    )
    leaves: int = Field(32, ge=2, le=512, description="branches that the dendrogram ends in")
    shuffles: int = Field(4, ge=1, description="random neighbourhoods that a code is decoded in")
    seed: int = Field(0, ge=0, lt=1 << 32, description="seed of the neighbourhoods")


class TransformerTrainingConfig(LoopConfig):
    """Keys of a transformer run."""

    codes: MayChange[Path] = Field(description="code cache of the training images")
    val_codes: MayChange[Path] = Field(description="code cache of the validation images")
    prior: MayChange[Path | None] = Field(
        None, description="prior.npz; the flat vocabulary without it"
    )
    partitions: MayChange[tuple[Path, ...]] = Field(
        (),
        max_length=16,
        description="priors of whose clusters the loss knows, too: one for IAR, nested cuts of a "
        "tree for several levels",
    )
    partition_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (), description="weight of the loss of each, IAR's lambda; without it 1"
    )
    init: MayChange[Source | None] = Field(
        None,
        description="transformer to start from: of a run, the folder of a bundle, or LlamaGen's, "
        f"{OR_ADDRESS}",
    )
    dim: int = Field(256, ge=8)
    n_layer: int = Field(8, ge=1)
    n_head: int = Field(4, ge=1)
    positions: Positions = Field(
        "rope2d", description="learned: a vector each, for codes that are no grid"
    )
    token_dropout: float = Field(0.1, ge=0, lt=1)
    resid_dropout: float = Field(0.1, ge=0, lt=1)
    ffn_dropout: float = Field(0.1, ge=0, lt=1)
    class_dropout: float = Field(0.1, ge=0, lt=1, description="share of labels dropped for CFG")
    weight_decay: float = Field(0.05, ge=0)
    compile: MayChange[bool] = Field(
        default=False, description="compile the training step with torch.compile"
    )
    parallel: MayChange[Literal["ddp", "fsdp"]] = Field(
        "ddp", description="under torchrun: a copy of the model a rank, or a part of it"
    )
    checkpoint_activations: MayChange[bool] = Field(
        default=False, description="compute activations again instead of keeping them"
    )
    peak_tflops: MayChange[float] = Field(
        0.0, ge=0, description="of a device, for the MFU; 0 knows the usual GPUs"
    )
    keep_every: MayChange[int] = Field(
        0,
        ge=0,
        description="epochs after which weights are kept in epochs/; 0 keeps the best alone",
    )
    sheet_epochs: MayChange[tuple[int, ...]] = Field(
        (), description="epochs after which a sheet is drawn"
    )
    sheet_tokenizer: MayChange[Path | None] = Field(
        None, description="tokenizer.safetensors, its run, or a bundle, for the sheets"
    )

    @model_validator(mode="after")
    def _one_weight_a_partition(self) -> Self:
        if self.partition_weights and len(self.partition_weights) != len(self.partitions):
            raise ValueError(
                f"partition_weights: {len(self.partition_weights)} for "
                f"{len(self.partitions)} partitions"
            )
        return self


class AlignConfig(TransformerTrainingConfig):
    """Keys of an alignment: those of the transformer's training, and two of the loss."""

    beta: float = Field(
        0.02, gt=0, description="less lets the difference to the reference grow further"
    )
    negative_weight: float = Field(
        1000.0, ge=0, description="lambda, of the images under classes that are not theirs"
    )

    @model_validator(mode="after")
    def _aligns_what_is_trained(self) -> Self:
        if self.init is None:
            raise ValueError("init: names the transformer to align, and is missing")
        if self.partition_weights:
            raise ValueError("partition_weights: partitions have no part in this loss")
        return self

    @property
    def source(self) -> str:
        """``init``, which is there."""
        return str(self.init)


class RefinerTrainingConfig(LoopConfig):
    """Keys of a refiner run."""

    codes: MayChange[Path] = Field(description="code cache of the training images")
    val_codes: MayChange[Path] = Field(description="code cache of the validation images")
    prior: MayChange[Path] = Field(description="prior.npz")
    transformer: MayChange[Path] = Field(description="transformer.safetensors")
    width: int = Field(512, ge=2)
    n_head: int = Field(4, ge=1)
    ffn_dim: int = Field(2048, ge=1)
    autoregressive: bool = Field(default=True, description="read the codes before")
    dropout: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    singletons: bool = Field(
        default=True,
        description="count positions of one-code clusters in the mean that is learnt; without them "
        "micro-batches weigh alike, whatever they have to learn",
    )


class CompleterTrainingConfig(LoopConfig):
    """Keys of a completer run."""

    codes: MayChange[Path] = Field(description="code cache of the training images")
    val_codes: MayChange[Path] = Field(description="code cache of the validation images")
    prior: MayChange[Path] = Field(description="prior.npz")
    dim: int = Field(256, ge=8)
    n_layer: int = Field(8, ge=1)
    n_head: int = Field(4, ge=1)
    positions: Positions = Field(
        "rope2d", description="learned: a vector each, for codes that are no grid"
    )
    softmax: Softmax = Field(
        "member", description="over the codes of a cluster; full: over all, whatever the cluster"
    )
    input_rows: InputRows = Field(
        "clusters", description="of the table that is read; codes: CTF's number of parameters"
    )
    token_dropout: float = Field(0.1, ge=0, lt=1)
    resid_dropout: float = Field(0.1, ge=0, lt=1)
    ffn_dropout: float = Field(0.1, ge=0, lt=1)
    class_dropout: float = Field(0.1, gt=0, lt=1, description="share of labels dropped for CFG")
    weight_decay: float = Field(0.05, ge=0)
    siblings: MayChange[Path | None] = Field(
        None, description="prior.npz of fewer clusters, made of those of the prior: their families"
    )
    corruption: float = Field(
        0.0, ge=0, le=1, description="share of clusters that are read as others of their family"
    )

    @model_validator(mode="after")
    def _corrupts_by_siblings(self) -> Self:
        if (self.siblings is None) != (self.corruption == 0):
            raise ValueError("corruption and siblings: one needs the other")
        return self


class ClassifierConfig(LoopConfig, ImageOptions):
    """Keys of a classifier run."""

    data: MayChange[Path] = Field(
        description="training images: class folders, tar shards or parquet files"
    )
    val_data: MayChange[Path] = Field(description="validation images, likewise")
    image_size: int = Field(32, ge=8)
    width: int = Field(32, ge=8, description="channels of the first stage")
    weight_decay: float = Field(0.05, ge=0)


class JudgeOptions(ImageOptions):
    """What images are measured with."""

    reference_features: Path | None = Field(
        None, description="folder that keeps the features of the reference for later evaluations"
    )
    inception_weights: Source | None = Field(
        None, description=f"for FID, IS, KID, precision, recall; {OR_ADDRESS}"
    )
    vgg_weights: Source | None = Field(
        None, description=f"for precision and recall in VGG16's features; {OR_ADDRESS}"
    )
    classifier: Path | None = Field(
        None, description="folder of a classifier run, for class agreement"
    )
    efficientnet: bool = Field(
        default=False, description="judge with EfficientNet-Lite0 of ImageNet, too; extra judge"
    )
    resamples: int = Field(
        0, ge=0, description="of the images, for standard errors of Fréchet distances; 0 gives none"
    )

    @field_validator("resamples")
    @classmethod
    def _deviate(cls, resamples: int) -> int:
        if resamples == 1:
            raise ValueError("a standard error needs two resamples")
        return resamples

    @property
    def has_judges(self) -> bool:
        """Whether there is anything to compare images by."""
        return bool(
            self.inception_weights or self.vgg_weights or self.classifier or self.efficientnet
        )


class EvaluateTokenizerConfig(JudgeOptions):
    """What to measure of a tokenizer, and with what."""

    tokenizer: Path = Field(
        description="tokenizer.safetensors, its run, or the folder of a bundle that has the encoder"
    )
    data: Path = Field(description="images: class folders, tar shards or parquet files")
    image_size: int | None = Field(
        None, ge=16, description="pixels a side, S; that of the run or of the bundle without it"
    )
    images: int = Field(0, ge=0, description="how many, spread over the folder; 0 is all")
    reference: Path | None = Field(
        None,
        description="real images to compare with, or .npz with mu and sigma of features; the "
        "originals without it",
    )
    out: Path | None = Field(None, description="folder for evaluation.json and reconstructions.png")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class EvaluateConfig(JudgeOptions):
    """What to measure, and with what."""

    model: str | None = Field(None, description="name of the model")
    version: str | None = Field(None, description="default: the active one")
    models: ModelsDir | None = Field(None, description="folder of the model bundles, or address")
    images_per_class: int = Field(
        100, ge=0, description="0 measures what needs no generated images"
    )
    cfg_scale: float | None = Field(
        None, ge=1, le=MAX_CFG_SCALE, description="default: the model's own"
    )
    cfg_schedule: CFGSchedule | None = Field(None, description="likewise")
    cfg_start: float | None = Field(None, ge=0, le=1, description="likewise")
    temperature: float | None = Field(None, ge=0, description="likewise")
    top_k: int | None = Field(None, ge=0, description="likewise; 0 is off")
    top_p: float | None = Field(None, gt=0, le=1, description="likewise; 1 is off")
    cluster_top_k: int | None = Field(
        None, ge=0, description="likewise, of the clusters of the model's partition; 0 is off"
    )
    cluster_top_p: float | None = Field(None, gt=0, le=1, description="likewise; 1 is off")
    decoding: str | None = Field(None, description="what the model offers")
    code_temperature: float | None = Field(None, ge=0, description="of a completer; likewise")
    code_top_k: int | None = Field(None, ge=0, description="likewise; 0 is off")
    code_cfg_scale: float | None = Field(None, ge=1, le=MAX_CFG_SCALE, description="likewise")
    seed: int = Field(0, ge=0, description="of the first image of each class")
    image_size: int | None = Field(
        None, ge=8, description="pixels a side at which images are compared"
    )
    batch_size: int = Field(50, ge=1, description="images generated together")
    reference: Path | None = Field(
        None, description="real images, or .npz with mu and sigma of features"
    )
    codes: Path | None = Field(
        None, description="code cache of validation images, for entropies on them"
    )
    transformer: Path | None = Field(
        None,
        description="folder of a transformer run, or of an epoch that it kept: measured in place "
        "of the version's own",
    )
    codes_cfg_scale: float = Field(
        1.0, ge=1, le=MAX_CFG_SCALE, description="guidance of those entropies"
    )
    out: Path | None = Field(
        None, description="folder for evaluation.json, curves; an interrupted evaluation goes on"
    )
    save_images: bool = Field(default=False, description="write PNGs to out")
    save_archive: bool = Field(default=False, description="write samples.npz, as ADM has it")
    save_statistics: bool = Field(default=False, description="write the reference's statistics")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class VersionOptions(Frozen):
    """Keys that publishing and importing share."""

    version: PlainName | None = Field(
        None, description="name of the version; the next number without it"
    )
    models: ModelsDir | None = Field(
        None, description="folder or address of the bundles; MASC_MODELS_DIR, or models"
    )
    note: str = Field("", description="where the model comes from, for its manifest")
    with_encoder: bool = Field(default=False, description="keep the tokenizer's encoder")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves the choice to torch")


class PublishConfig(VersionOptions):
    """Keys of a publication."""

    name: PlainName = Field(description="name of the model")
    shuffles: int = Field(
        16,
        ge=0,
        description="random neighbourhoods that a code is decoded in, for the pictures of the "
        "codebook; 0 is no pictures",
    )
    tokenizer: Path = Field(
        description="folder of the tokenizer run, or of the bundle whose tokenizer made the codes"
    )
    prior: Path | None = Field(None, description="folder of the prior; flat vocabulary without it")
    codes: Path = Field(description="code cache of the training images")
    transformer: Path = Field(description="folder of the transformer run")
    refiner: Path | None = Field(
        None, description="folder of the refiner run; offers refine decoding"
    )
    completer: Path | None = Field(
        None, description="folder of the completer run; offers complete decoding"
    )
    classifier: Path | None = Field(
        None, description="folder of a classifier run, for class agreement"
    )
    evaluation: Path | None = Field(
        None,
        description="evaluation.json of masc evaluate on the same weights, published before as a "
        "candidate; its figures are taken over",
    )
    images_per_class: int = Field(100, ge=1, description="images that the classifier judges")
    samples: int = Field(
        1000, ge=0, description="classes of which an image is drawn, evenly spread; 0 is none"
    )
    cfg_scale: float = Field(1.0, ge=1, le=MAX_CFG_SCALE, description="default CFG scale")
    cfg_schedule: CFGSchedule = Field("constant", description="default CFG schedule")
    cfg_start: float | None = Field(
        None,
        ge=0,
        le=1,
        description="default cfg_start, the share of positions before guidance; 0.18",
    )
    temperature: float = Field(1.0, gt=0, description="default temperature of clusters")
    top_k: int = Field(0, ge=0, description="default top-k of clusters; 0 is off")
    top_p: float = Field(1.0, gt=0, le=1, description="default top-p of clusters; 1 is off")
    cluster_top_k: int = Field(
        0, ge=0, description="default top-k of a partition's clusters; 0 is off"
    )
    cluster_top_p: float = Field(1.0, gt=0, le=1, description="likewise, top-p; 1 is off")
    decoding: Decoding = Field("uniform", description="default in-cluster decoding")
    code_temperature: float | None = Field(
        None, gt=0, description="default temperature of a completer; 1"
    )
    code_top_k: int | None = Field(
        None, ge=0, description="default top-k of a completer; 0, which is all codes"
    )
    code_cfg_scale: float | None = Field(
        None, ge=1, le=MAX_CFG_SCALE, description="default CFG scale of a completer; 1"
    )
    activate: bool = Field(default=True, description="serve this version from now on")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class ImportOptions(VersionOptions):
    """Keys of everything that becomes a version of others' weights."""

    weights_dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="precision of the weights on the disk"
    )
    cfg_scale: float | None = Field(
        None,
        ge=1,
        le=MAX_CFG_SCALE,
        description="default CFG scale; the one suggested for the size",
    )
    cfg_schedule: CFGSchedule | None = Field(
        None, description="default CFG schedule; step for GigaTok's transformers, else constant"
    )
    cfg_start: float | None = Field(
        None,
        ge=0,
        le=1,
        description="default cfg_start, the share of positions before guidance; 0.18",
    )
    samples: int = Field(
        4, ge=0, description="images that are made, as they are served, for a first look; 0 is none"
    )
    shuffles: int = Field(
        4,
        ge=0,
        description="random neighbourhoods that a code is decoded in, for the pictures of the "
        "codebook; 0 is no pictures",
    )
    activate: bool = Field(default=False, description="serve this version from now on")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; for the samples")


class ImportConfig(ImportOptions):
    """Keys of an import."""

    name: PlainName = Field(description="name of the model")
    gpt: Source = Field(description=f"transformer, .pt or .safetensors; {OR_ADDRESS}")
    tokenizer: Source = Field(description="tokenizer of either kind, likewise")
    image_size: int | None = Field(
        None, ge=8, description="pixels a side, where the transformer's file does not tell"
    )
    n_head: int | None = Field(None, ge=1, description="heads, for a size that is not LlamaGen's")
    tokenizer_heads: int | None = Field(None, ge=1, description=TOKENIZER_HEADS)
    mapping: Source | None = Field(
        None,
        description="of a transformer of IAR: its mapping, .pt, by which codes are renumbered; "
        "likewise",
    )
    cluster_size: int | None = Field(
        None, ge=1, description="codes of IAR's clusters, where its file does not tell; 128"
    )
    classes: Path | None = Field(
        None, description="class names, one a line; ImageNet's where there are 1000 classes"
    )
    gpt_weights: Literal["model", "ema"] = Field("model", description=WEIGHTS_HELP)
    tokenizer_weights: Literal["model", "ema"] = Field("model", description=WEIGHTS_HELP)

    @model_validator(mode="after")
    def _clusters_are_of_a_mapping(self) -> Self:
        if self.cluster_size is not None and self.mapping is None:
            raise ValueError("cluster_size: is of a mapping, and none is given")
        return self


class PullConfig(ImportOptions):
    """Keys of a pull."""

    weights: str = Field(description=f"one of {', '.join(RELEASED)}")
    name: PlainName | None = Field(None, description="name of the model; that of the weights")
    activate: bool = Field(default=True, description="serve this version from now on")
    out: Path | None = Field(
        None, description="of a tokenizer alone: folder of its run; runs/ and its name"
    )

    @field_validator("weights")
    @classmethod
    def _known(cls, weights: str) -> str:
        if weights not in RELEASED:
            raise ValueError(f"no {weights!r}; there are {', '.join(RELEASED)}")
        return weights

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        is_model = RELEASED[self.weights].gpt is not None
        wrong = {"out"} if is_model else set(ImportOptions.model_fields) - {"threads"} | {"name"}
        wrong &= self.model_fields_set
        if wrong:
            raise ValueError(f"{min(wrong)}: is no option of {self.weights}")
        return self


class ImportTokenizerConfig(ImageOptions):
    """Keys of a tokenizer's import."""

    source: Source = Field(description=f"tokenizer of LlamaGen or GigaTok; {OR_ADDRESS}")
    out: Path = Field(description="folder of the tokenizer run that this becomes")
    weights: Literal["model", "ema"] = Field("model", description=WEIGHTS_HELP)
    tokenizer_heads: int | None = Field(None, ge=1, description=TOKENIZER_HEADS)
    val_data: Path | None = Field(
        None, description="images to measure it on: class folders, tar shards or parquet files"
    )
    val_images: int = Field(2000, ge=1, description="images, spread over the folder")
    image_size: int = Field(256, ge=8, description="of the images")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves the choice to torch")
