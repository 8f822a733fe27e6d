"""What an aligned transformer is fine-tuned for: images of its class without guidance.

Condition contrastive alignment. With ``r(x, c) = log p(x | c) - log p_ref(x | c)`` of an image's
tokens x under a class c, the image's own class, and a class c' that is drawn without regard to it:

    loss = -log sigmoid(beta r(x, c)) - lambda log sigmoid(-beta r(x, c'))

Were r free, and the reference the data's distribution, the minimum would be ``r(x, c) = (log p(x |
c) - log p(x) - log lambda) / beta``: images that are typical of their class become likelier, as
guidance makes them, in one row an image instead of two. The probabilities of a model add up to one,
so it cannot reach that: trained for long it puts more and more on fewer images. Rate and number of
steps are the brake.

Chen et al.: Toward Guidance-Free AR Visual Generation via Condition Contrastive Alignment. 2025.

Legend: B images, L positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.models.gpt import GPT


class AlignmentLoss(nn.Module):
    """The loss, divided by lambda where that is above 1.

    An image whose label is the null class has the first term alone, so that the model can still be
    guided. The model drops no labels itself: it has to be asked what the reference is asked.

    Parameters
    ----------
    model : fine-tuned
    reference : the same model as it was: in evaluation mode, without gradients, no part of this
        module
    beta : the smaller, the larger the difference to the reference that the loss still rewards
    negative_weight : lambda
    """

    def __init__(self, model: GPT, reference: GPT, beta: float, negative_weight: float) -> None:
        super().__init__()
        model.cls_embedding.dropout = 0.0
        # In a tuple the reference is no part of this module.
        self.model, self._frozen = model, (reference.eval(),)
        self._beta, self._negative_weight = beta, negative_weight

    def forward(self, classes: Tensor, negatives: Tensor, clusters: Tensor) -> dict[str, Tensor]:
        """``loss``, ``margin`` and ``accuracy``.

        The margin is the mean of r(x, c) - r(x, c') in nats, over images whose two classes differ;
        the accuracy is the share of these above 0.

        Parameters
        ----------
        classes : int64 (B,), the images' classes, some of them the null class
        negatives : int64 (B,), classes drawn without regard to the images
        clusters : int64 (B, L)
        """
        inputs = torch.cat([classes, negatives]), torch.cat([clusters, clusters])
        with torch.no_grad():
            reference = log_likelihood(self._frozen[0], *inputs)
        own, other = (log_likelihood(self.model, *inputs) - reference).chunk(2)
        positive, negative = -F.logsigmoid(self._beta * own), -F.logsigmoid(-self._beta * other)
        is_null = classes == self.model.config.num_classes
        negative = negative.where(~is_null, 0.0)
        loss = (positive + self._negative_weight * negative).mean()
        margin = (own - other).detach()
        is_other = ((classes != negatives) & ~is_null).float()
        count = is_other.sum().clamp(min=1)
        return {
            "loss": loss / max(1.0, self._negative_weight),
            "margin": (margin * is_other).sum() / count,
            "accuracy": ((margin > 0) * is_other).sum() / count,
        }


def log_likelihood(model: GPT, classes: Tensor, clusters: Tensor) -> Tensor:
    """``log p(clusters | label)`` of each image in nats, float32 (B,); arguments as above."""
    logits = model(classes, clusters[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), clusters.flatten(), reduction="none")
    return -losses.view(clusters.shape).sum(dim=1)
