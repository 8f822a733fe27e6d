"""The codebook atlas as web pages: one a sheet, which shows the sheet's patches and their numbers.

A page is one file that needs no script and, beside the sheet's image, nothing from anywhere: an
``<img>`` of each code is a window on the sheet. Codes and clusters have anchors, ``#code-17`` and
``#cluster-5``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from training.studies.atlas import AtlasCluster
from training.studies.atlas_sheet import Sheet

LARGEST = 12  # clusters that the first page points to

STYLE = """
:root {
  color-scheme: light dark;
  --background: #f6f5f2; --surface: #ffffff; --text: #1d2327; --muted: #5b666e;
  --line: #d5d6d3; --accent: #0f6a72;
}
@media (prefers-color-scheme: dark) {
  :root {
    --background: #14181b; --surface: #1c2226; --text: #e6e8e9; --muted: #a0abb3;
    --line: #333c42; --accent: #57b9bf;
  }
}
* { box-sizing: border-box; }
body {
  max-width: 90rem; margin: 0 auto; padding: 1rem;
  background: var(--background); color: var(--text); font: 16px/1.45 system-ui, sans-serif;
}
h1 { margin: 0; font-size: 1.5rem; }
h2, summary { margin: 1.5rem 0 0.5rem; font-size: 1.125rem; font-weight: 600; }
summary { cursor: pointer; }
h3 { margin: 0 0 0.3rem; font-size: 0.875rem; }
h3 span, .codes span { color: var(--muted); font-weight: 400; }
p { max-width: 48rem; margin: 0.5rem 0; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
ul { display: flex; flex-wrap: wrap; margin: 0; padding: 0; list-style: none; }
.links { gap: 0.25rem 0.9rem; }
.links [aria-current] { font-weight: 600; }
nav { margin: 0.75rem 0; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0.75rem 0;
  font-variant-numeric: tabular-nums;
}
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
figure img {
  display: block; max-width: 100%; height: auto;
  border: 1px solid var(--line); border-radius: 8px; background: #ffffff;
}
.clusters { align-items: flex-start; gap: 0.6rem; }
.cluster {
  padding: 0.5rem 0.6rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--surface);
}
.cluster:target, .codes li:target { outline: 3px solid var(--accent); outline-offset: 1px; }
.codes { gap: 0.35rem; }
.codes li { font-size: 0.6875rem; line-height: 1.3; text-align: center; }
.codes img {
  display: block; margin: 0 auto 0.1rem; object-fit: none; image-rendering: pixelated;
  border-radius: 2px;
}
.singles { gap: 0.5rem 0.25rem; }
.singles li { width: 4.6rem; }
.singles span { display: block; }
"""


@dataclass(frozen=True, slots=True)
class Overview:
    """What the first page says before the clusters.

    Attributes
    ----------
    title : of all pages
    facts : label and value
    pictures : file name, and what the picture shows
    """

    title: str
    facts: Mapping[str, str]
    pictures: Mapping[str, str]


def page_stem(index: int) -> str:
    """Name of a page and of its image, without the suffix: ``atlas``, ``atlas-2``, ..."""
    return f"atlas-{index + 1}" if index else "atlas"


def atlas_pages(sheets: Sequence[Sheet], overview: Overview) -> Iterator[str]:
    """HTML of the page of each sheet; the sheet's image is ``page_stem(i) + ".png"``."""
    for index, sheet in enumerate(sheets):
        title = overview.title + (f", page {index + 1}" if index else "")
        parts = [f"<h1>{escape(title)}</h1>"]
        if index == 0:
            parts += [_overview(overview), _largest(sheets)]
        navigation = _navigation(index, len(sheets))
        parts += [navigation, _as_image(index), _several(sheet, index), _singles(sheet, index)]
        parts.append(navigation)
        yield _document(title, "\n".join(filter(None, parts)))


def _document(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _overview(overview: Overview) -> str:
    facts = "\n".join(
        f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>"
        for label, value in overview.facts.items()
    )
    pictures = "\n".join(
        f'<figure><a href="{name}"><img src="{name}" alt="{escape(shows)}" loading="lazy"></a>'
        "</figure>"
        for name, shows in overview.pictures.items()
    )
    return f"""<p>A square is what a code looks like: the pixels it gives, averaged over random
neighbours. Its number stands below it. Clusters and their codes follow the order of the tree's
leaves, so that neighbours look alike; the height of a cluster is the mean distance at which the
tree made it, where it is a branch of the tree.</p>
<dl>
{facts}
</dl>
{pictures}"""


def _largest(sheets: Sequence[Sheet]) -> str:
    clusters = [(i, c) for i, sheet in enumerate(sheets) for c in sheet.clusters if not c.is_single]
    if not clusters:
        return ""
    clusters.sort(key=lambda found: -len(found[1].codes))
    links = "\n".join(
        f'<li><a href="{page_stem(index)}.html#cluster-{cluster.number}">{cluster.number}</a>'
        f" ({len(cluster.codes):,})</li>"
        for index, cluster in clusters[:LARGEST]
    )
    return f"""<h2>Largest clusters, and how many codes they hold</h2>
<ul class="links">
{links}
</ul>"""


def _navigation(index: int, num_pages: int) -> str:
    if num_pages == 1:
        return ""
    links = "\n".join(
        f'<li><a href="{page_stem(i)}.html"{" aria-current=page" * (i == index)}>{i + 1}</a></li>'
        for i in range(num_pages)
    )
    return f'<nav aria-label="Pages"><ul class="links"><li>Pages</li>\n{links}\n</ul></nav>'


def _as_image(index: int) -> str:
    return f'<p><a href="{page_stem(index)}.png">The clusters of this page as one image</a></p>'


def _several(sheet: Sheet, index: int) -> str:
    clusters = [cluster for cluster in sheet.clusters if not cluster.is_single]
    if not clusters:
        return ""
    cards = "\n".join(_card(cluster, sheet, index) for cluster in clusters)
    return f"""<h2>{len(clusters):,} clusters of several codes</h2>
<ul class="clusters">
{cards}
</ul>"""


def _card(cluster: AtlasCluster, sheet: Sheet, index: int) -> str:
    codes = "".join(
        f'<li id="code-{code}">{_patch(code, sheet, index)}{code}</li>'
        for code in cluster.codes.tolist()
    )
    height = "no branch" if cluster.height is None else f"height {cluster.height:.3f}"
    return (
        f'<li class="cluster" id="cluster-{cluster.number}"><h3>{cluster.number} '
        f"<span>{len(cluster.codes):,} codes, {height}</span></h3>"
        f'<ul class="codes">{codes}</ul></li>'
    )


def _singles(sheet: Sheet, index: int) -> str:
    clusters = [cluster for cluster in sheet.clusters if cluster.is_single]
    if not clusters:
        return ""
    items = "\n".join(
        f'<li id="code-{code}">{_patch(code, sheet, index)}{code}'
        f'<span id="cluster-{cluster.number}">cluster {cluster.number}</span></li>'
        for cluster in clusters
        for code in cluster.codes.tolist()
    )
    opened = " open" * (len(clusters) == len(sheet.clusters))
    return f"""<details{opened}><summary>{len(clusters):,} clusters of one code</summary>
<ul class="codes singles">
{items}
</ul></details>"""


def _patch(code: int, sheet: Sheet, index: int) -> str:
    left, top = sheet.corners[code]
    return (
        f'<img src="{page_stem(index)}.png" width="{sheet.side}" height="{sheet.side}" '
        f'style="object-position:-{left}px -{top}px" alt="code {code}" loading="lazy">'
    )
