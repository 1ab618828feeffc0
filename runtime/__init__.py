# SPDX-License-Identifier: Apache-2.0
"""Open a package, stream an avatar: numpy and one engine, no torch."""

__version__ = "0.1.0"

__all__ = ["__version__"]
