# SPDX-License-Identifier: Apache-2.0
"""Checkpoint in, package out. The only room where torch lives."""
