"""Initial weights of a transformer from one that is trained, over the same or a finer vocabulary.

A flat transformer (every code its own cluster) becomes one over K clusters: a cluster's row of the
embedding and of the head is the mean of its members' rows, weighted by how often they occur in the
training codes, because rows that training never touched say nothing. Everything else is copied.

For the head the exact logit of a cluster would be ``log sum_c exp(w_c h)`` over its members. By
Jensen it is at least ``sum_c p_c w_c h - sum_c p_c log p_c``: the mean row gives the first term.
The second, the entropy of the members' shares, is the same at every position and would take a bias,
which LlamaGen's head does not have; the first steps of training make up for it.

Legend: V codes, K clusters, S rows of the vocabulary to start from, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masc_core.bundle.manifest import MANIFEST_FILE, TRANSFORMER_FILE
from masc_core.bundle.read import load_bundle
from masc_core.errors import ConfigError
from masc_core.io.files import reading, sha256_file
from masc_core.io.tensors import read_header
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.weights import load_transformer, read_inputs
from masc_core.prior import ClusterMap
from training.pretrained.checkpoint_file import CheckpointFile
from training.pretrained.models import CLASS_EMBEDDING, CODE_EMBEDDING, gpt_of, read_gpt_config

HEAD = "output.weight"


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """A trained transformer and what its vocabulary means."""

    path: Path  # where it comes from
    model: GPT  # in evaluation mode on the CPU
    prior: ClusterMap  # clusters that it predicts; its codes are those of the new model

    @classmethod
    def open(
        cls, path: Path, config: GPTConfig, prior: ClusterMap, inputs: Mapping[str, str]
    ) -> InitialWeights:
        """Read a starting point.

        Parameters
        ----------
        path : a checkpoint of LlamaGen, a ``transformer.safetensors`` or the folder of its run, or
            the folder of a bundle
        config, prior : of the new model
        inputs : hashes of the new run's ``tokenizer`` and ``prior``; a checkpoint of LlamaGen does
            not tell its tokenizer, and a bundle's is stored in another precision, so of these the
            number of codes alone is compared

        Raises
        ------
        ArtifactError : a file is missing, damaged or of another kind
        ConfigError : it was trained over the codes of another tokenizer, or over clusters that the
            file does not tell
        """
        if (path / MANIFEST_FILE).is_file():
            bundle = load_bundle(path)
            weights = cls(path, bundle.transformer, bundle.code_sampler.prior)
        else:
            weights = _from_file(weights_path(path), config, prior, inputs)
        if weights.prior.num_codes != prior.num_codes:
            raise ConfigError(
                f"init: {path} is over {weights.prior.num_codes} codes, "
                f"the new model over {prior.num_codes}"
            )
        return weights

    @torch.no_grad()
    def fill(self, model: GPT, prior: ClusterMap, counts: NDArray[np.int64] | None = None) -> None:
        """Give a new model its initial weights.

        Parameters
        ----------
        model : over the K clusters of ``prior``; where it has other classes, its class embeddings
            stay as they are
        prior : each of its clusters must consist of whole clusters of this one
        counts : int (V,), how often the codes occur; by default all weigh the same

        Raises
        ------
        ConfigError : the sizes differ, or the clusters are not made of those of the starting point
        """
        self._check_sizes(model)
        owners = self._owners(prior)
        weights = _weights(self.prior, owners, counts)
        tensors = self.model.state_dict()
        for name in (CODE_EMBEDDING, HEAD):
            tensors[name] = merge_rows(tensors[name], owners, weights)
        if tensors[CLASS_EMBEDDING].shape != model.state_dict()[CLASS_EMBEDDING].shape:
            tensors[CLASS_EMBEDDING] = model.state_dict()[CLASS_EMBEDDING]
        model.load_state_dict(tensors)

    def _check_sizes(self, model: GPT) -> None:
        keys = ["dim", "n_layer", "n_head", "positions"]
        if model.config.positions == "learned":
            keys.append("block_size")
        for key in keys:
            ours, theirs = getattr(model.config, key), getattr(self.model.config, key)
            if ours != theirs:
                raise ConfigError(f"{key}: must be {theirs}, as in {self.path}, not {ours}")

    def _owners(self, prior: ClusterMap) -> NDArray[np.int64]:
        """Cluster of the new prior that holds each of the starting point's, int64 (S,)."""
        try:
            return prior.over(self.prior).labels
        except ValueError as error:
            raise ConfigError(
                f"init: {self.path} predicts clusters that the prior does not keep whole: it "
                f"{error}; start from the flat vocabulary, or from the same or a finer prior"
            ) from error


def weights_path(path: Path) -> Path:
    """File of a starting point's weights: in a folder, that of the transformer."""
    return path / TRANSFORMER_FILE if path.is_dir() else path


def start_sha256(path: Path) -> str:
    """Hash of a starting point's weights; an `ArtifactError` where they cannot be read."""
    file = weights_path(path)
    with reading(file):
        return sha256_file(file)


def merge_rows(rows: Tensor, owners: NDArray[np.int64], weights: NDArray[np.float64]) -> Tensor:
    """Weighted means of the rows (S, C) that have the same owner.

    Parameters
    ----------
    owners : int64 (S,) in [0, K), each of which occurs
    weights : float64 (S,), at least one of each owner positive

    Returns
    -------
    (K, C), of the type of the rows; a row that is alone is the same to the last bit
    """
    shares = torch.from_numpy(weights / np.bincount(owners, weights=weights)[owners])
    index = torch.tensor(owners)
    merged = torch.zeros(int(owners.max()) + 1, rows.shape[1], dtype=torch.float64)
    merged.index_add_(0, index, rows.double() * shares[:, None])
    return merged.to(rows.dtype)


def _weights(
    prior: ClusterMap, owners: NDArray[np.int64], counts: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Occurrences of each cluster, float64 (S,); the same for all where none of an owner's does."""
    if counts is None:
        return np.ones(prior.num_clusters)
    found = np.bincount(prior.labels, weights=counts, minlength=prior.num_clusters)
    return np.where(np.bincount(owners, weights=found)[owners] > 0, found, 1.0)


def _from_file(
    path: Path, sizes: GPTConfig, prior: ClusterMap, inputs: Mapping[str, str]
) -> InitialWeights:
    if path.suffix == ".safetensors" and read_header(path).get("kind") is not None:
        trained = read_inputs(path)
        if trained.get("tokenizer") != inputs.get("tokenizer"):
            raise ConfigError(f"init: {path} was trained with another tokenizer")
        model = load_transformer(path)
        return InitialWeights(path, model, _trained_prior(path, model, prior, inputs))
    checkpoint = CheckpointFile.open(path)
    config = read_gpt_config(checkpoint, block_size=sizes.block_size, n_head=sizes.n_head)
    return InitialWeights(path, gpt_of(checkpoint, config), ClusterMap.identity(config.vocab_size))


def _trained_prior(
    path: Path, model: GPT, prior: ClusterMap, inputs: Mapping[str, str]
) -> ClusterMap:
    trained = read_inputs(path).get("prior")
    if trained == "identity":
        return ClusterMap.identity(model.config.vocab_size)
    if trained == inputs.get("prior"):
        return prior
    raise ConfigError(
        f"init: {path} was trained over another prior, which it does not hold; start from the "
        "folder of its bundle"
    )
