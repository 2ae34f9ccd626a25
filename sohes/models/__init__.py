# SPDX-License-Identifier: Apache-2.0
"""The model, its weights on disk, and inference."""
