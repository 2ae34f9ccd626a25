# SPDX-License-Identifier: Apache-2.0
"""The jobs of the commands, and the three phases of training."""
