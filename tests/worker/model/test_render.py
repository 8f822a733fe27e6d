from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from masc_core.bundle.read import Bundle, load_bundle
from masc_core.errors import NonFiniteError
from masc_core.sampling.completion import complete_codes
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import GRID, NUM_CODES, save_tiny_bundle
from worker.model.render import Renderer


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    save_tiny_bundle(tmp_path)
    return load_bundle(tmp_path / "tiny" / "1")


def some_codes() -> list[Tensor]:
    """Whole images, and the upper rows of others."""
    generator = torch.Generator().manual_seed(0)
    lengths = [GRID**2, GRID, GRID**2, 2 * GRID, GRID**2]
    return [torch.randint(NUM_CODES - 1, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("threaded", [False, True])
def test_pixels_are_the_bundles(bundle: Bundle, threaded: bool) -> None:
    codes = some_codes()
    with closing(Renderer(bundle, threaded=threaded)) as renderer:
        pixels = [renderer.submit(row) for row in codes]
    for row, future in zip(codes, pixels, strict=True):
        assert np.array_equal(future.result(0).pixels, bundle.render(row[None])[0])


@pytest.mark.parametrize("threaded", [False, True])
def test_an_image_that_cannot_be_decoded_fails_alone(bundle: Bundle, threaded: bool) -> None:
    bundle.tokenizer.quantize.embedding.weight[NUM_CODES - 1] = torch.nan
    codes = some_codes()
    codes[2] = torch.full((GRID**2,), NUM_CODES - 1)
    with closing(Renderer(bundle, threaded=threaded)) as renderer:
        pixels = [renderer.submit(row) for row in codes]
    with pytest.raises(NonFiniteError):
        pixels[2].result(0)
    for i in (0, 1, 3, 4):
        assert np.array_equal(pixels[i].result(0).pixels, bundle.render(codes[i][None])[0])


@pytest.mark.parametrize("threaded", [False, True])
def test_images_that_end_together_are_completed_each_by_itself(
    tmp_path: Path, threaded: bool
) -> None:
    save_tiny_bundle(tmp_path / "models", completer=True)
    bundle = load_bundle(tmp_path / "models" / "tiny" / "1")
    completer = bundle.code_sampler.completer
    completer.cls_embedding.embedding_table.weight[2] = torch.nan
    codes = [row for row in some_codes() if len(row) == GRID**2] * 2
    params = [SamplingParams(i % 4, 1.0, seed=i, decoding="complete") for i in range(5)]
    params.append(SamplingParams(0, 1.0, seed=5))
    with closing(Renderer(bundle, threaded=threaded)) as renderer:
        made = [renderer.submit(*pair) for pair in zip(codes, params, strict=True)]
    with pytest.raises(NonFiniteError, match=r"completer's scores$"):
        made[2].result(0)
    for i in (0, 1, 3, 4, 5):
        final = complete_codes(bundle.code_sampler, codes[i][None], [params[i]])
        assert np.array_equal(made[i].result(0).pixels, bundle.render(final)[0])
        assert (made[i].result(0).complete_seconds > 0) == (i != 5)


def test_what_waits_is_decoded_together(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, sizes, render = threading.Event(), list[tuple[int, ...]](), Bundle.render

    def patient(self: Bundle, codes: Tensor) -> object:
        assert go_on.wait(10)
        sizes.append(tuple(codes.shape))
        return render(self, codes)

    monkeypatch.setattr(Bundle, "render", patient)
    with closing(Renderer(bundle, threaded=True)) as renderer:
        first = renderer.submit(some_codes()[0])
        while not first.running():
            pass
        rest = [renderer.submit(row) for row in some_codes()]
        assert rest[3].cancel()
        go_on.set()
    assert sizes == [(1, GRID**2), (3, GRID**2), (1, GRID)]
    assert all(future.done() for future in rest)


def test_what_images_took_together_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_bundle(tmp_path / "models", completer=True)
    bundle = load_bundle(tmp_path / "models" / "tiny" / "1")
    go_on, sizes, render = threading.Event(), list[int](), Bundle.render

    def patient(self: Bundle, codes: Tensor) -> object:
        assert go_on.wait(10)
        sizes.append(len(codes))
        return render(self, codes)

    monkeypatch.setattr(Bundle, "render", patient)
    codes = some_codes()[0]
    with closing(Renderer(bundle, threaded=True)) as renderer:
        first = renderer.submit(codes)
        while not first.running():
            pass
        completed = [
            renderer.submit(codes, SamplingParams(1, 1.0, seed=seed, decoding="complete"))
            for seed in range(8)
        ]
        plain = renderer.submit(codes, SamplingParams(1, 1.0, seed=0))
        started = time.perf_counter()
        go_on.set()
    elapsed = time.perf_counter() - started
    made = [future.result(0) for future in (*completed, plain)]
    assert sizes == [1, 9]
    assert 0 < sum(one.complete_seconds + one.vq_decode_seconds for one in made) <= elapsed
    assert made[-1].complete_seconds == 0
    # Of all, as of the last one, which waited for no completer.
    assert {one.vq_decode_seconds for one in made} == {made[-1].vq_decode_seconds}


def test_a_size_that_cannot_be_compiled_ends_no_thread(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def small_ones_only(_: Bundle, codes: Tensor) -> object:
        if len(codes) > 4:
            raise torch.OutOfMemoryError("of the device")
        return np.zeros((len(codes), 4, 4, 3), dtype=np.uint8)

    monkeypatch.setattr(Bundle, "render", small_ones_only)
    Renderer(bundle)._compile()
    assert [record.message for record in caplog.records] == [
        f"images are not decoded {size} at a time: of the device" for size in (8, 16)
    ]


def test_one_that_nobody_closed_does_not_hold_up_the_end_of_the_process(bundle: Bundle) -> None:
    with closing(Renderer(bundle, threaded=True)) as renderer:
        assert renderer._thread is not None
        assert renderer._thread.daemon


@pytest.fixture
def gpu_bundle(tmp_path: Path) -> Iterator[Bundle]:
    save_tiny_bundle(tmp_path)
    yield load_bundle(tmp_path / "tiny" / "1", "cuda")
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_a_gpu_decodes_on_a_stream_of_its_own(bundle: Bundle, gpu_bundle: Bundle) -> None:
    codes = some_codes()
    with closing(Renderer(gpu_bundle)) as renderer:
        pixels = [renderer.submit(row) for row in codes]
    for row, future in zip(codes, pixels, strict=True):
        difference = future.result(0).pixels.astype(int) - bundle.render(row[None])[0]
        assert np.abs(difference).max() <= 2
