# SPDX-License-Identifier: Apache-2.0
"""Reference implementations in plain PyTorch, which define the result of each operator."""
