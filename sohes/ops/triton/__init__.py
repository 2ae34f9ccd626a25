# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the operators. Their functions take and return the tensors of the references."""
