# SPDX-License-Identifier: Apache-2.0
"""Measurements, made through the public names of the runtime only."""
