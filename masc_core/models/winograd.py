"""3x3 convolutions on the CPU with a quarter of the multiplications.

Winograd's F(m x m, 3 x 3) makes a tile of m x m outputs of a patch of a x a inputs, a = m + 2::

    Y = A^T [ (G g G^T) * (B^T d B) ] A        g weights, d patch, * element by element

with a^2 multiplications instead of 9 m^2 (Lavin and Gray 2016, https://arxiv.org/abs/1509.09308).
Over all tiles and channels each of the a^2 elements is a matrix product. The matrices evaluate and
interpolate polynomials at a - 1 points and at infinity (Toom and Cook).

What stands before a convolution is done while its input is read: normalisation, as a factor and a
summand a channel, with swish, or twice the size. A residual is added while its output is written.

Legend: H, W pixels of the output, C channels of the input, N of the output.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from masc_core.arrays import Float32Array
from masc_core.models.gemm_microkernel import COLUMNS, ROWS, tile_product
from masc_core.numba_jit import njit_unchecked

# The points of each m: small, and in pairs of opposite sign. Errors are 1e-5 of the output at most.
# With m = 6, a fifth of the multiplications, what is between leaves the cache: no faster.
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 2.0, -2.0)}
# Weights grow by a^2 / 9. Beyond these many, reading those of m = 4 takes longer than it saves.
MOST_WEIGHTS = 1 << 22
# Tiles that are computed together: enough to use a weight often, few enough to stay in the cache.
TILES = 40

six_rows, two_rows = tile_product(ROWS), tile_product(2)


def winograd_matrices(m: int) -> tuple[npt.NDArray[np.float64], ...]:
    """``A^T`` (m, a), ``G`` (a, 3) and ``B^T`` (a, a)."""
    points = np.array(POINTS[m])

    def evaluate(terms: int) -> npt.NDArray[np.float64]:
        """Powers of every point, and at infinity the highest term alone."""
        return np.vstack([points[:, None] ** np.arange(terms), np.eye(terms)[-1]])

    differences = points[:, None] - points + np.eye(len(points))
    scale = np.append(differences.prod(axis=1), 1.0)[:, None]  # keeps the numbers of B^T simple
    return evaluate(m).T, evaluate(3) / scale, np.linalg.inv(evaluate(m + 2)).T * scale


class Convolution(NamedTuple):
    """A 3x3 convolution with padding 1, ready for `convolve`; C and N are multiples of 16.

    Attributes
    ----------
    weights : (a^2, N / 16, C, 16), of row i and column j of a patch at ``j a + i``
    bias : (N,)
    input_transform : ``B^T`` (a, a)
    output_transform : ``A^T`` (m, a)
    """

    weights: Float32Array
    bias: Float32Array
    input_transform: Float32Array
    output_transform: Float32Array

    @classmethod
    def of(cls, weight: Float32Array, bias: Float32Array) -> Self:
        """Transform a weight (N, C, 3, 3); channels are filled up with zeros."""
        weight = np.pad(weight, [(0, -size % COLUMNS) for size in weight.shape[:2]] + [(0, 0)] * 2)
        n, c = weight.shape[:2]
        m = 4 if 36 * n * c <= MOST_WEIGHTS else 2
        output_transform, weight_transform, input_transform = winograd_matrices(m)
        # G g G^T as one product, of all weights at once.
        both_sides = np.kron(weight_transform, weight_transform).astype(np.float32)
        transformed = both_sides @ weight.swapaxes(2, 3).reshape(-1, 9).T
        panels = transformed.reshape(-1, n // COLUMNS, COLUMNS, c).swapaxes(2, 3)
        return cls(
            weights=np.ascontiguousarray(panels),
            bias=np.pad(bias, (0, n - len(bias))),
            input_transform=np.ascontiguousarray(input_transform, np.float32),
            output_transform=np.ascontiguousarray(output_transform, np.float32),
        )

    def tile_rows(self, height: int, width: int) -> int:
        """Return how many rows of tiles of an output (H, W) are computed together.

        The number of threads has no say: an image has the same bits with any.
        """
        m = len(self.output_transform)
        down, across = -(-height // m), -(-width // m)
        half = -(-down // 2)  # for a second thread
        return min(-(-TILES // across), max(half, -(-ROWS // across)))

    def scratch_size(self, height: int, width: int) -> int:
        """Floats that `convolve` needs for an output (H, W)."""
        return _scratch_ends(self, self.tile_rows(height, width), width)[-1]


@njit_unchecked
def _scratch_ends(
    conv: Convolution, tile_rows: int, width: int
) -> tuple[int, int, int, int, int, int]:
    """Where in the scratch the strip, a patch, all patches, products, tiles, and a row end."""
    m, a = conv.output_transform.shape
    _, panels, c, _ = conv.weights.shape
    n = panels * COLUMNS
    across = (width + m - 1) // m
    tiles = (tile_rows * across + ROWS - 1) // ROWS * ROWS
    strip = (tile_rows * m + 2) * (across * m + 2) * c
    patch = strip + a * a * c
    patches = patch + a * a * tiles * c
    products = patches + a * tiles * n
    end = products + tiles * m * a * n
    return strip, patch, patches, products, end, end + m * n


@njit_unchecked
def convolve(  # noqa: PLR0913, PLR0917 - of a kernel that is called once a layer
    x: Float32Array,
    affine: Float32Array,
    factor: int,
    conv: Convolution,
    tile_rows: int,
    add: bool,  # noqa: FBT001
    out: Float32Array,
    scratch: Float32Array,
    part: int,
    parts: int,
) -> None:
    """Compute every `parts`-th strip of an output, from strip `part` on.

    Parameters
    ----------
    x : (H / factor, W / factor, C)
    affine : (2, C), factor and summand of a channel, before swish; (2, 0) to do nothing to x
    factor : times that a pixel is repeated in both directions
    conv, tile_rows : and its `tile_rows(H, W)`, the height of a strip
    add : to what `out` holds
    out : (H, W, N), or with less channels
    scratch : (parts, its `scratch_size(H, W)`), of which only the part's own row is used
    """
    height, width, _ = out.shape
    m, a = conv.output_transform.shape
    _, panels, c, _ = conv.weights.shape
    n = panels * COLUMNS
    across = (width + m - 1) // m
    ends = _scratch_ends(conv, tile_rows, width)
    own = scratch[part]
    strip = own[: ends[0]].reshape((tile_rows * m + 2, across * m + 2, c))
    patch = own[ends[0] : ends[1]]
    patches = own[ends[1] : ends[2]].reshape((a, a, -1, c))  # column, row, tile
    products = own[ends[2] : ends[3]].reshape((a, panels, -1, COLUMNS))  # of one column
    tiles = own[ends[3] : ends[4]].reshape((-1, m, a, n))
    row = own[ends[4] : ends[5]].reshape((m, n))
    for top in range(part * tile_rows * m, height, parts * tile_rows * m):
        count = (min(height - top, tile_rows * m) + m - 1) // m * across
        _read(x, affine, factor, top, strip)
        _transform_patches(strip, conv.input_transform, count, patch, patches)
        for j in range(a):
            _multiply(patches[j], conv.weights[j * a : j * a + a], count, products)
            _sum_rows(products, conv.output_transform, j, count, tiles)
        _write(tiles, conv, add, top, count, row, out)


@njit_unchecked
def _read(
    x: Float32Array, affine: Float32Array, factor: int, top: int, strip: Float32Array
) -> None:
    """Fill a strip that begins a pixel above `top` and a pixel left of the image."""
    height, width = len(x) * factor, x.shape[1] * factor
    for i in range(len(strip)):
        y = top + i - 1
        for j in range(strip.shape[1]):
            if 0 <= y < height and 0 < j <= width:
                pixel = x[y // factor, (j - 1) // factor]
                if affine.shape[1]:
                    _swish(pixel, affine, strip[i, j])
                else:
                    for c in range(strip.shape[2]):
                        strip[i, j, c] = pixel[c]
            else:
                for c in range(strip.shape[2]):
                    strip[i, j, c] = 0


@njit_unchecked
def _swish(x: Float32Array, affine: Float32Array, out: Float32Array) -> None:
    """``z / (1 + exp(-z))`` without a function that keeps the loop from being vectorised.

    Padé's approximation makes ``exp(z / 16)`` a quotient ``p / q``, the rest is
    ``z p^16 / (p^16 + q^16)``: 1e-6 of the exact value, and beyond 32 nothing changes.
    """
    for c in range(len(out)):
        z = x[c] * affine[0, c] + affine[1, c]
        r = min(max(z, np.float32(-32)), np.float32(32)) * np.float32(1 / 16)
        even = np.float32(1) + r * r * np.float32(1 / 10)
        odd = r * (np.float32(1 / 2) + r * r * np.float32(1 / 120))
        p, q = even + odd, even - odd
        p, q = p * p, q * q
        p, q = p * p, q * q
        p, q = p * p, q * q
        p, q = p * p, q * q
        out[c] = z * p / (p + q)


@njit_unchecked
def _transform_patches(
    strip: Float32Array,
    input_transform: Float32Array,
    count: int,
    patch: Float32Array,
    patches: Float32Array,
) -> None:
    """``B^T d B`` of every tile, first along columns, then along rows."""
    a, c = len(input_transform), strip.shape[2]
    m = a - 2
    from_row = strip.shape[1] * c
    across = (strip.shape[1] - 2) // m
    from_element = patches.shape[2] * c
    for t in range(count):
        corner = t // across * m * from_row + t % across * m * c
        for j in range(a):
            _apply(input_transform, strip, corner + j * c, from_row, patch, j * c, a * c, c)
        for i in range(a):
            to = i * from_element + t * c
            _apply(input_transform, patch, i * a * c, c, patches, to, a * from_element, c)


@njit_unchecked
def _multiply(
    patches: Float32Array, weights: Float32Array, count: int, products: Float32Array
) -> None:
    """The products of a column's elements (a, tiles, C) with their weights (a, N / 16, C, 16)."""
    a, panels, c, _ = weights.shape
    from_element = patches.shape[1] * c
    for i in range(a):
        for p in range(panels):
            panel = (i * panels + p) * c * COLUMNS
            to = (i * panels + p) * products.shape[2] * COLUMNS
            for t in range(0, count, ROWS):
                a_tile = (patches, i * from_element + t * c, c)
                six_rows(
                    a_tile, (weights, panel, COLUMNS), (products, to + t * COLUMNS, COLUMNS), c
                )


@njit_unchecked
def _sum_rows(
    products: Float32Array, output_transform: Float32Array, j: int, count: int, tiles: Float32Array
) -> None:
    """``A^T`` times a column, which is still in the cache."""
    _, panels, most, _ = products.shape
    _, m, a, n = tiles.shape
    for p in range(panels):
        for t in range(count):
            at, to = (p * most + t) * COLUMNS, (t * m * a + j) * n + p * COLUMNS
            _apply(
                output_transform, products, at, panels * most * COLUMNS, tiles, to, a * n, COLUMNS
            )


@njit_unchecked
def _write(
    tiles: Float32Array,
    conv: Convolution,
    add: bool,  # noqa: FBT001
    top: int,
    count: int,
    row: Float32Array,
    out: Float32Array,
) -> None:
    """The rest of ``A^T Y A``, into those pixels that there are."""
    height, width, channels = out.shape
    _, m, a, n = tiles.shape
    across = (width + m - 1) // m
    for t in range(count):
        y, x = top + t // across * m, t % across * m
        for i in range(min(m, height - y)):
            _apply(conv.output_transform, tiles, (t * m + i) * a * n, n, row, 0, n, n)
            for j in range(min(m, width - x)):
                pixel = out[y + i, x + j]
                if add:
                    for c in range(channels):
                        pixel[c] += row[j, c] + conv.bias[c]
                else:
                    for c in range(channels):
                        pixel[c] = row[j, c] + conv.bias[c]


@njit_unchecked
def _apply(
    matrix: Float32Array,
    x: Float32Array,
    at: int,
    x_row: int,
    out: Float32Array,
    to: int,
    out_row: int,
    channels: int,
) -> None:
    """``out[i] = sum of matrix[i, k] x[k] over k``, of rows of so many channels."""
    rows, depth = matrix.shape
    for c in range(0, channels, COLUMNS):
        for i in range(0, rows, 2):
            rows_of = (matrix, i * depth, depth)
            two_rows(rows_of, (x, at + c, x_row), (out, to + i * out_row + c, out_row), depth)
