# SPDX-License-Identifier: Apache-2.0
"""Package in, smaller package out: recipes, codecs, calibration, gates."""
