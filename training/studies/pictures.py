"""Make what a bundle shows of its codebook: the tree of its rows, and the patches of its codes.

The tree is that of average linkage over the rows as the decoder takes them, whatever the prior is;
where the prior is a cut of it, every cluster is one of its branches. So the rows are those that the
prior was made of, and not as a bundle rounds them.
"""

from __future__ import annotations

from masc_core.bundle.codebook_view import CodebookFiles
from masc_core.models.vq import VQModel
from masc_core.tree import build_tree
from training.loop.progress import Report, no_report
from training.studies.patches import code_patches

SHUFFLES = 16  # random neighbourhoods of a code


def codebook_files(
    tokenizer: VQModel, decoder: VQModel | None = None, report: Report = no_report
) -> CodebookFiles:
    """Build the tree and decode the patches.

    Parameters
    ----------
    tokenizer : as it was trained, in evaluation mode
    decoder : the same, on the device that is to decode; by default the tokenizer itself

    Raises
    ------
    NonFiniteError
        The decoder made a NaN or an infinity.
    """
    patches = code_patches(decoder or tokenizer, shuffles=SHUFFLES, report=report)
    rows = tokenizer.quantize.codebook().detach().cpu().double().numpy()
    return CodebookFiles(build_tree(rows, report=report), patches)
