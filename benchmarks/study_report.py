"""The report of a study: tables and plots, of the records of its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.plot_png import draw_curves, new_figure, png_bytes
from training.studies.acceleration import read_curve

FINE_BITS = "fine_bits_per_position"
BEGIN, END = "<!-- tables: benchmarks/study.py -->", "<!-- end of tables -->"
COLUMNS = {
    "bits": "bits a code",
    "cluster_bits": "of which the cluster",
    "epochs_to_flat": "epochs to flat's bits",
    "teacher_forced_entropy_ratio": "entropy / log2 K, teacher-forced",
    "entropy_ratio": "entropy / log2 K, free-running",
    "class_agreement": "class agreement",
    "frechet_classifier_distance": "Fréchet distance",
    "precision_classifier": "precision",
    "recall_classifier": "recall",
    "frechet_efficientnet_distance": "Fréchet distance, EfficientNet",
    "precision_efficientnet": "precision, EfficientNet",
    "recall_efficientnet": "recall, EfficientNet",
    "seconds_per_image": "seconds an image",
}


def with_tables(text: str, tables: str) -> str:
    """A report with its tables in the place of the ones it has; what people wrote stays."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    before = before or "# Priors, decodings and losses, all else equal\n\n"
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after or chr(10)}"


def report_of(rows: list[dict[str, Any]], real: list[dict[str, Any]]) -> str:
    """The tables and the plots, in Markdown; ``real`` are rows of real images."""
    made_on = [(row["settings"]["device"], row["settings"]["made_with"]["torch"]) for row in rows]
    devices = [f"{device} with torch {torch}" for device, torch in dict.fromkeys(made_on)]
    common = rows[0]["cfg_scale"]
    about = (
        "Same tokenizer, transformer, steps and images; written by `benchmarks/study.py` on "
        f"{', '.join(devices)}. {rows[0]['images']} generated images a row. Bits a code are those "
        "of the true cluster, and of the true code in it under the decoding named, on validation "
        "images: the one figure that vocabularies of all sizes share. Fréchet distance, precision "
        "and recall are in the features of a classifier of the real images: not an FID. ± is a "
        "standard error over resampled images; runs that end in `seed1` show what another seed "
        "changes."
    )
    lines = [
        about,
        "",
        f"### At CFG scale {common:g}",
        "",
        *table([*real, *(row for row in rows if row["cfg_scale"] == common)]),
    ]
    lines += ["", "### Each at its best CFG scale", "", *table(best_scales(rows), ("cfg_scale",))]
    if seeds := seeds_table(best_scales(rows)):
        lines += ["", "### What a seed changes, each at its best CFG scale", "", *seeds]
    for title, plot in (("Validation", "training"), ("Entropy by position", "entropy")):
        lines += ["", f"![{title}](study-{plot}.png)"]
    return "\n".join(lines)


def seeds_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table: mean and standard deviation of runs that differ in their seed."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        name, _, _ = row["run"].partition("-seed")
        groups.setdefault((name, row["decoding"]), []).append(row)
    groups = {key: group for key, group in groups.items() if len(group) > 1}
    if not groups:
        return []
    columns = ("bits", "class_agreement", "frechet_classifier_distance")
    titles = ["run", "decoding", "seeds", *(COLUMNS[key] for key in columns)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for (name, decoding), group in groups.items():
        cells = [name, decoding, str(len(group))]
        for key in columns:
            values = [row[key] for row in group]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def best_scales(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run and decoding, the row with the least Fréchet distance."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["run"], row["decoding"]
        if key not in best or _distance(row) < _distance(best[key]):
            best[key] = row
    return list(best.values())


def _distance(row: Mapping[str, Any]) -> float:
    return float(row["frechet_classifier_distance"])


def table(rows: Iterable[Mapping[str, Any]], more: tuple[str, ...] = ()) -> list[str]:
    """Lines of a Markdown table."""
    titles = ["run", "decoding", *("CFG scale" for _ in more), *COLUMNS.values()]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row["run"], row["decoding"], *(f"{row[key]:g}" for key in more)]
        cells += [_cell(row, key) for key in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "not reached" if key in row else ""
    if key == "class_agreement":
        return f"{value:.3f} ± {math.sqrt(value * (1 - value) / row['images']):.3f}"
    if (error := row.get(f"{key}_error")) is not None:
        return f"{value:.2f} ± {error:.2f}"
    return f"{value:.3f}"


def training_curves(records: Path, names: Iterable[str]) -> bytes:
    """PNG of the bits that a code costs, by epoch; vocabularies of all sizes share that measure."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for name in names:
        curve = read_curve(records / name / "transformer", FINE_BITS)
        axes.plot(*zip(*curve, strict=True), label=name, marker=".")
    axes.set(xlabel="epoch", ylabel="validation bits a code, uniform within clusters")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return png_bytes(figure)


def entropy_curves(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """PNG of the teacher-forced entropy by position of each run."""
    curves = {row["run"]: np.array(row["curves"]["teacher-forced entropy"]) for row in rows}
    return draw_curves("", curves)
