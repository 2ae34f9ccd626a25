# SPDX-License-Identifier: Apache-2.0
"""The network, its weights on disk, and inference."""
