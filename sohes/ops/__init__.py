# SPDX-License-Identifier: Apache-2.0
"""The operators. Each has a PyTorch reference that defines it and faster twins that agree with it."""
