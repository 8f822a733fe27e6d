"""Sizes of the completer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from masc_core.errors import ConfigError
from masc_core.models.gpt_config import GPTConfig

Softmax = Literal["member", "full"]
InputRows = Literal["clusters", "codes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleterConfig(GPTConfig):
    """Sizes of a completer; its ``vocab_size`` are the V codes that it chooses from."""

    num_clusters: int  # K, what it reads
    softmax: Softmax = "member"  # over the codes of the cell's cluster, or over all codes
    input_rows: InputRows = "clusters"  # K, or V, of which K are used: CTF's count of parameters

    def __post_init__(self) -> None:
        GPTConfig.__post_init__(self)  # a dataclass with slots has no super()
        if not 1 <= self.num_clusters <= self.vocab_size:
            raise ConfigError(
                f"num_clusters: must be from 1 to {self.vocab_size}, not {self.num_clusters}"
            )
        for name, kinds in (("softmax", get_args(Softmax)), ("input_rows", get_args(InputRows))):
            if getattr(self, name) not in kinds:
                raise ConfigError(f"{name}: must be {' or '.join(kinds)}")

    @property
    def num_inputs(self) -> int:
        """Rows of the input table."""
        return self.num_clusters if self.input_rows == "clusters" else self.vocab_size

    @property
    def num_parameters(self) -> int:
        """Those of a transformer over V codes, with another input table."""
        transformer = GPTConfig.num_parameters.__get__(self)
        return transformer + (self.num_inputs - self.vocab_size) * self.dim
