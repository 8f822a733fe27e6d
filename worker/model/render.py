"""Codes to pixels beside the engine; where a completer is to draw the codes, it does so first.

On a GPU one thread with a stream of its own takes together what waits, so that decoding fills the
gaps that the transformer's steps leave. On the CPU an image is decoded at once by whoever asks: a
second thread would only fight for the same cores.
An image that cannot be completed or decoded fails alone.

Legend: n codes of an image or of its upper rows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from contextlib import nullcontext
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.bundle.read import Bundle
from masc_core.device import new_stream, use_device
from masc_core.images import Pixels
from masc_core.models.gpu_decoder import SIZES
from masc_core.sampling.completion import complete_codes
from masc_core.sampling.params import SamplingParams

logger = logging.getLogger(__name__)


class Rendered(NamedTuple):
    """An image, uint8 (H, W, 3), and what it took: of images made together, its share."""

    pixels: Pixels
    complete_seconds: float  # to draw its codes anew; 0 where they were not
    vq_decode_seconds: float


class _Request(NamedTuple):
    codes: Tensor
    params: SamplingParams | None
    rendered: Future[Rendered]

    @property
    def is_to_complete(self) -> bool:
        return self.params is not None and self.params.decoding == "complete"


class Renderer:
    """Decodes images of one bundle.

    Parameters
    ----------
    bundle : what decodes
    threaded : whether a thread of its own does so; by default where the bundle is on a GPU
    """

    def __init__(self, bundle: Bundle, *, threaded: bool | None = None) -> None:
        on_gpu = bundle.device.type == "cuda"
        self._bundle = bundle
        self._stream = new_stream(bundle.device) if on_gpu else None
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if on_gpu if threaded is None else threaded:
            # A daemon: a process that ends on an error must not wait for an open renderer.
            self._thread = threading.Thread(target=self._serve, name="render", daemon=True)
            self._thread.start()

    @property
    def is_threaded(self) -> bool:
        """Whether `submit` returns before the image is rendered."""
        return self._thread is not None

    def submit(self, codes: Tensor, params: SamplingParams | None = None) -> Future[Rendered]:
        """Ask for the pixels of one image; the future raises what `Bundle.render` raises.

        Parameters
        ----------
        codes : int64 (n,), on the CPU or complete on the device; whole rows of the grid
        params : of the image, if it is whole: its decoding may be to complete it
        """
        request = _Request(codes, params, Future())
        if self._thread is None:
            self._render([request])
        else:
            self._requests.put(request)
        return request.rendered

    def close(self) -> None:
        """Do what was submitted, and end; nothing may be submitted afterwards."""
        if self._thread is not None:
            self._requests.put(None)
            self._thread.join()

    def _serve(self) -> None:
        use_device(self._bundle.device)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            if self._stream is not None:
                self._compile()
            is_open = True
            while is_open:
                waiting = [self._requests.get()]
                while not self._requests.empty():
                    waiting.append(self._requests.get())
                is_open = None not in waiting
                by_length: defaultdict[int, list[_Request]] = defaultdict(list)
                for request in filter(None, waiting):
                    by_length[len(request.codes)].append(request)
                for requests in by_length.values():
                    self._render(requests)

    def _compile(self) -> None:
        """Compile for every size of batch now: later images would wait for it."""
        codes = torch.zeros(SIZES[-1], self._bundle.manifest.grid**2, dtype=torch.int64)
        for size in SIZES:
            try:
                self._bundle.render(codes[:size])
            except Exception as error:  # noqa: BLE001 - reported with the image that needs it
                logger.warning("images are not decoded %d at a time: %s", size, error)

    def _render(self, requests: list[_Request]) -> None:
        """Render images of one size; if that fails, one by one."""
        requests = [
            request for request in requests if request.rendered.set_running_or_notify_cancel()
        ]
        if not requests:
            return
        try:
            self._render_all(requests)
        except Exception:  # noqa: BLE001 - found one by one below
            for request in requests:
                self._render_one(request)

    def _render_one(self, request: _Request) -> None:
        try:
            self._render_all([request])
        except Exception as error:  # noqa: BLE001 - raised where the image is awaited
            request.rendered.set_exception(error)

    def _render_all(self, requests: list[_Request]) -> None:
        codes = torch.stack([request.codes for request in requests])
        whole = [i for i, request in enumerate(requests) if request.params is not None]
        params = [request.params for request in requests if request.params is not None]
        num_completed = sum(request.is_to_complete for request in requests)
        started = time.perf_counter()
        if num_completed:
            codes = codes.to(self._bundle.device)
            codes[whole] = complete_codes(self._bundle.code_sampler, codes[whole], params)
        completed = time.perf_counter()
        images = self._bundle.render(codes)
        vq_decode_seconds = (time.perf_counter() - completed) / len(requests)
        for request, pixels in zip(requests, images, strict=True):
            share = request.is_to_complete / max(1, num_completed)
            complete_seconds = share * (completed - started)
            request.rendered.set_result(Rendered(pixels, complete_seconds, vq_decode_seconds))
