"""Read pages of the atlas back, as a browser sees them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

POSITION = re.compile(r"object-position:-(\d+)px -(\d+)px")
VOID = {"meta", "img", "br", "link"}


@dataclass
class Patch:
    """The picture of a code on a page."""

    code: int
    cluster: int
    source: str
    corner: tuple[int, int]
    size: tuple[int, int]
    lazy: bool
    folded: bool


@dataclass
class AtlasReader(HTMLParser):
    """Everything on a page that a test asks for."""

    text: str
    patches: list[Patch] = field(default_factory=list)
    anchors: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    words: list[str] = field(default_factory=list)
    alts: list[str] = field(default_factory=list)
    open_tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()
        assert not self.open_tags, f"{self.open_tags[-1]} is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.attributes |= values.keys()
        self.anchors += [values["id"]] if "id" in values else []
        self.references += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.alts.append(values["alt"])
            self._note_patch(values)
        if tag not in VOID:
            self.open_tags.append((tag, values))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self.open_tags.pop()
        assert opened == tag, f"{opened} is closed by {tag}"

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open_tags[-1][0] != "style":
            self.words.append(data.strip())
        if data.startswith("cluster "):  # below a single code
            self.patches[-1].cluster = int(data.split()[1])

    def _note_patch(self, values: dict[str, str]) -> None:
        position = POSITION.search(values.get("style", ""))
        if position is None:
            return
        ids = [attributes.get("id", "") for _, attributes in self.open_tags]
        card = next((name for name in ids if name.startswith("cluster-")), "cluster--1")
        code = int(next(name for name in ids if name.startswith("code-")).removeprefix("code-"))
        assert values["alt"] == f"code {code}"
        details = [attributes for tag, attributes in self.open_tags if tag == "details"]
        self.patches.append(
            Patch(
                code,
                int(card.removeprefix("cluster-")),
                values["src"],
                (int(position[1]), int(position[2])),
                (int(values["width"]), int(values["height"])),
                values.get("loading") == "lazy",
                bool(details) and "open" not in details[0],
            )
        )
