"""A small comparison of priors, as configuration and as results."""

from __future__ import annotations

from pathlib import Path

from training.metrics.cluster_bits import ClusterBits
from training.metrics.cluster_statistics import ClusterDistances, ClusterSizes
from training.metrics.image_quality import EXACT_PSNR
from training.metrics.prior_measurement import Comparison, Impossible, PriorResult, Quality
from training.metrics.semantic_replacement import Estimate
from training.stages.configs import CompareConfig


def compare_config(root: Path, **changes: object) -> CompareConfig:
    values: dict[str, object] = {
        "out": root / "priors",
        "tokenizer": root / "tokenizer" / "tokenizer.safetensors",
        "images": root / "val",
        "codes": root / "codes-train",
        "methods": ("average", "kmeans++", "balanced-kmeans"),
        "num_clusters": (8, 5),
        "image_size": 16,
        "draws": 2,
    }
    return CompareConfig.model_validate(values | changes)


def prior_result(method: str, histogram: tuple[tuple[int, int], ...], psnr: float) -> PriorResult:
    num_clusters = sum(number for _, number in histogram)
    num_codes = sum(size * number for size, number in histogram)
    gain = None if method in {"flat", "average"} else Estimate(-0.25, 0.0625)
    quality = Quality(
        psnr=Estimate(psnr, 0.0042),
        ssim=Estimate(0.9, 0.00031),
        psnr_to_reconstruction=Estimate(EXACT_PSNR - 1e-12 if method == "flat" else 30.5, 0.01),
        ssim_to_reconstruction=Estimate(0.95, 0.001),
        kept=Estimate(0.625, 0.001),
        psnr_gain=gain,
        ssim_gain=gain,
    )
    return PriorResult(
        method=method,
        num_clusters=num_clusters,
        file="" if method == "flat" else f"{method}-{num_clusters}.npz",
        sizes=ClusterSizes(
            largest=histogram[-1][0],
            mean=num_codes / num_clusters,
            effective_clusters=num_clusters / 2,
            singleton_clusters=0.5,
            singleton_codes=0.25,
            singleton_usage=0.125,
            largest_usage=0.75,
            histogram=histogram,
        ),
        distances=ClusterDistances(pairs=0.5, uniform=0.25, frequency=0.125),
        bits=ClusterBits(
            unigram=3.5, conditional=2.5, conditional_ratio=0.5, uniform=1.25, frequency=0.75
        ),
        quality={"uniform": quality, "frequency": quality},
    )


def comparison() -> Comparison:
    """Two methods at K = 8 and 4 of 2,000 codes, one of them not possible at 4."""
    return Comparison(
        flat=prior_result("flat", ((1, 2000),), 30.0),
        rows=(
            prior_result("average", ((1, 4), (2, 2), (996, 2)), 25.0),
            prior_result("kmeans++", ((250, 8),), 24.75),
            prior_result("average", ((1, 2), (2, 1), (1996, 1)), 22.0),
            Impossible("kmeans++", 4, "too few different rows"),
        ),
        provenance={
            "tokenizer_sha256": "0123456789abcdef" * 4,
            "num_codes": 2000,
            "num_positions": 64,
            "num_images": 1000,
            "draws": 3,
            "fitted_on": "the code cache",
            "fitted_positions": 6400000,
            "skipped": ["images/a/1.png"],
        },
        config={"seed": 0},
    )
