"""What the metrics of an evaluation mean, in a sentence each; it is written beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable

FEATURES = {
    "inception": "the 2048 features of the 2015 Inception network",
    "vgg": "VGG16's second fully connected layer",
    "classifier": "the features before the head of the classifier of the real images",
    "efficientnet": "the 1,280 features before the head of ImageNet's EfficientNet-Lite0",
}
PRECISION = "Share of generated images nearer to a real one than its third nearest real neighbour"
RECALL = "Share of real images nearer to a generated one than its third nearest generated neighbour"
BOOTSTRAP = "Standard error of that: its deviation over resamples of the generated images."
DEFINITIONS = {
    "seconds_per_image": "Median of one image at a time with the model's defaults, rendering "
    "included.",
    "seconds_per_image_threads": "CPU threads meanwhile.",
    "psnr": "Mean over the images of 10 log10(255^2 / mean squared error), in dB.",
    "ssim": "Mean structural similarity of the luma, in windows of 11x11 pixels.",
    "codebook_usage": "Share of the codes that occur.",
    "codebook_perplexity": "Two to the entropy of the frequencies of the codes.",
    "code_entropy_bits": "Entropy of the frequencies of the codes, in bits a position.",
    "images": "Generated images, the same number of every class, interleaved.",
    "entropy_bits": "Free-running entropy: of the guided distribution of the next cluster, before "
    "temperature and filters, given what the model has drawn; mean over positions and generated "
    "images.",
    "entropy_ratio": "entropy_bits / log2(clusters).",
    "free_running_cluster_entropy_bits": "As entropy_bits, of the clusters of the partition that "
    "the number names, whose probabilities are sums of those of codes.",
    "free_running_cluster_entropy_ratio": "The same / log2(clusters).",
    "teacher_forced_entropy_bits": "Entropy of the distribution of the next cluster, guided by "
    "codes_cfg_scale, at temperature 1 without filters, given the true clusters before; mean over "
    "positions and real images.",
    "teacher_forced_entropy_ratio": "teacher_forced_entropy_bits / log2(clusters).",
    "teacher_forced_cross_entropy_bits": "-log2 of the probability of the true cluster under the "
    "same distribution; mean over positions and real images.",
    "latent_groups": "Means of the curves over each group of a 1-D tokenizer's tokens, of 1, 1, 2, "
    "4, ... tokens, coarse to fine.",
    "member_bits": "log2 of the size of the true cluster: what telling its codes apart costs when "
    "they are drawn uniformly (`uniform_bits` of training runs); mean over positions and real "
    "images.",
    "fine_entropy_bits": "teacher_forced_entropy_bits + member_bits: comparable between "
    "vocabularies.",
    "fine_cross_entropy_bits": "teacher_forced_cross_entropy_bits + member_bits: bits a code.",
    "teacher_forced_images": "Real images, the first variant of each.",
    "cluster_bits": "-log2 of the probability of the true cluster, the sum of those of its codes, "
    "in a partition that the training's loss knew of; the number is its clusters'. Under the same "
    "distribution; mean over positions and real images, or over those whose cluster has at "
    "least the size named, and less than the next one of 2, 16, 128 and 1024.",
    "cluster_share": "Share of the positions with a true cluster of that size.",
    "cluster_entropy_bits": "Entropy of the clusters of such a partition, whose probabilities are "
    "sums of those of codes.",
    "cluster_entropy_ratio": "cluster_entropy_bits / log2(clusters).",
    "class_agreement": "Share of the generated images that the classifier gives the class asked "
    "for.",
    "classifier_accuracy": "Share of the real validation images that the classifier gives their "
    "class: the most that class_agreement can show.",
    "class_agreement_efficientnet": "Share of the generated images to which EfficientNet-Lite0, "
    "trained on ImageNet and not here, gives the class asked for among the model's.",
    "efficientnet_accuracy": "Share of the real images of the reference to which it gives theirs: "
    "what class_agreement_efficientnet is to be held against.",
    "inception_score_mean": "exp of the mean divergence of an image's class probabilities from "
    "their mean; mean over 10 parts of the shuffled images, logits without bias.",
    "inception_score_std": "Deviation over these parts.",
    "kernel_inception_distance_mean": "Squared distance of means under a cubic kernel; mean over "
    "100 subsets of at most 1000 images; of at most 10,000 real images.",
    "kernel_inception_distance_std": "Deviation over these subsets.",
    "frechet_inception_distance": "FID: Fréchet distance of Gaussians in the 2048 features of the "
    "2015 Inception network.",
    "frechet_classifier_distance": "Fréchet distance of Gaussians in the features before the head "
    "of the classifier of the real images; it is no FID.",
    "frechet_efficientnet_distance": "Fréchet distance of Gaussians in the 1,280 features before "
    "the head of ImageNet's EfficientNet-Lite0; it is no FID.",
    "frechet_efficientnet_distance_error": BOOTSTRAP,
    "frechet_inception_distance_error": BOOTSTRAP,
    "frechet_classifier_distance_error": BOOTSTRAP,
} | {
    f"{name}_{label}": f"{text}, of Euclidean distances in {features}; at most 10,000 real images."
    for label, features in FEATURES.items()
    for name, text in (
        ("precision", PRECISION), ("recall", RECALL),
    )
}  # fmt: skip


def definitions(metrics: Iterable[str]) -> dict[str, str]:
    """Of those of the metrics that have one; numbers at the end of a name are left out."""
    plain = {name: re.sub(r"(_\d+)(_size_\d+)?$", "", name) for name in metrics}
    return {name: DEFINITIONS[key] for name, key in plain.items() if key in DEFINITIONS}
