"""What a worker tells of a job while it runs.

Events are numbered from 1 within their job, so that who was away can ask for what it missed. The
outcome is no event: whoever reads events to their end asks for it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from masc_core.images import ImageFormat


@dataclass(frozen=True, slots=True)
class Started:
    """A worker runs the job; after a worker was lost there is another such event.

    Attributes
    ----------
    version : of the model that makes the images
    """

    version: str


@dataclass(frozen=True, slots=True)
class Progress:
    """So much of an image is drawn.

    Attributes
    ----------
    image : which one of the job, from 0
    rows : rows of the grid that are drawn
    num_rows : all of them
    """

    image: int
    rows: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Preview:
    """The upper rows of an image, nearly as they will be.

    Attributes
    ----------
    image : which one of the job, from 0
    rows : rows of the grid that are shown
    num_rows : all of them
    format : of the file
    data : the file, as wide as the image and as high as the rows
    """

    image: int
    rows: int
    num_rows: int
    format: ImageFormat
    data: bytes


Event = Started | Progress | Preview


@dataclass(frozen=True, slots=True)
class NumberedEvent:
    """An event and its number."""

    number: int
    event: Event
