# SPDX-License-Identifier: Apache-2.0
"""The definitions: each operator in plain PyTorch."""
