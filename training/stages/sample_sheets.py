"""Sheets of images that a transformer makes while it is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from masc_core.errors import ConfigError
from masc_core.generation.generate import generate
from masc_core.images import contact_sheet
from masc_core.io.files import atomic_path
from masc_core.models.gpt import GPT
from masc_core.models.vq import to_uint8
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from training.data.codebook_source import TrainedTokenizer

SHEET_CLASSES = 20
COLUMNS = 10
MIN_SIDE = 96  # pixels; smaller images are enlarged by a whole number
CFG_SCALE = 2.0


class Sheets:
    """One image a class, of at most 20 classes spread over all; always the same seeds."""

    def __init__(self, tokenizer: Path, prior: ClusterMap, class_names: tuple[str, ...]) -> None:
        self._tokenizer = TrainedTokenizer.open(tokenizer).model
        if self._tokenizer.config.num_codes != prior.num_codes:
            raise ConfigError(f"sheet_tokenizer: {tokenizer} has another codebook than the codes")
        self._prior, self._names = prior, class_names
        count = min(SHEET_CLASSES, len(class_names))
        self._classes = torch.linspace(0, len(class_names) - 1, count).long().tolist()

    @torch.inference_mode()
    def draw(self, model: GPT, path: Path) -> None:
        """Write a sheet of the model, which is in evaluation mode."""
        device = model.output.weight.device
        cfg_scale = CFG_SCALE if model.config.class_dropout else 1.0
        params_list = [
            SamplingParams(class_id=i, cfg_scale=cfg_scale, seed=i) for i in self._classes
        ]
        made = generate(model, CodeSampler(self._prior, device=device), params_list)
        grid, vq_decoder = model.config.grid_size, self._tokenizer.to(device)
        pixels = torch.cat(
            [to_uint8(vq_decoder.decode_codes(row[None], grid)) for row in made.codes]
        )
        names = [self._names[i] for i in self._classes]
        times = max(1, MIN_SIDE // pixels.shape[1])
        enlarged = pixels.repeat_interleave(times, 1).repeat_interleave(times, 2).cpu().numpy()
        sheet = contact_sheet(list(enlarged), COLUMNS, captions=names)
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            sheet.save(temporary)
