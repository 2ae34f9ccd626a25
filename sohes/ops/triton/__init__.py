# SPDX-License-Identifier: Apache-2.0
"""Triton twins of the operators."""
