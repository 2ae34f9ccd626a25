# SPDX-License-Identifier: Apache-2.0
"""The steps of an evaluation in numpy: what defines them, and what runs where there is no compiled module."""
