# SPDX-License-Identifier: Apache-2.0
"""The product and the convolution by which a machine's peak is measured, the same for every library."""

import math

MATRIX = (1536, 1536)
"""Both factors of the product: 7.2 billion operations, 9 MB each in f32."""
CONVOLUTION = ((1, 64, 8, 64, 64), (64, 64, 3, 3, 3))
"""Input and kernel, padded to the same size: 7.2 billion operations, the widths of the default avatar's decoder."""
PEAK_RUNS = 4
"""The first is not counted."""


def operations(kind: str) -> int:
    """Return floating-point operations of "matmul" or "conv3d", two for a product with its sum."""
    if kind == "matmul":
        return 2 * MATRIX[0] ** 3
    pixels, kernel = CONVOLUTION
    return 2 * math.prod(pixels[2:]) * math.prod(kernel)


def rate(kind: str, seconds: float) -> float:
    """Return billions of operations a second."""
    return operations(kind) / seconds / 1e9
