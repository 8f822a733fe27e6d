"""The completer: from an image's whole grid of clusters to all of its codes in one pass.

The transformer's blocks without the causal mask, over the class and the clusters of all cells.
Position 1 + p scores the codes of cell p itself, not of the next one: nothing is shifted. Guo et
al. (Improving Autoregressive Image Generation through Coarse-to-Fine Token Prediction, 2025) give
the idea and the size; that attention is full, that the class is seen and dropped in a share of the
training, and that codes come from the cluster alone are decisions of this program.

Legend: B images, L tokens of an image, C width, V codes.
"""

from __future__ import annotations

from torch import Tensor, nn

from masc_core.models.completer_config import CompleterConfig
from masc_core.models.gpt import GPT, init_weights


class Completer(GPT):
    """The model; of what it inherits, steps are not for it."""

    config: CompleterConfig

    def __init__(self, config: CompleterConfig) -> None:
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.num_inputs, config.dim)
        init_weights(self.tok_embeddings)
        for block in self.blocks:
            block.attention.is_causal = False

    def hidden(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states (B, L, C) of the cells, whose products with ``output`` are the scores.

        Parameters
        ----------
        labels : int64 (B,), classes; ``num_classes`` is the null class
        tokens : int64 (B, L), the cluster of every cell
        """
        return super().hidden(labels, tokens)[:, 1:]
