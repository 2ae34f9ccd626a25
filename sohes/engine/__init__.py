# SPDX-License-Identifier: Apache-2.0
"""Training for all phases: loop, optimiser, EMA teacher, processes, checkpoints, run folder."""
