# SPDX-License-Identifier: Apache-2.0
"""One thread for all tests: the tensors are tiny, and equal thread counts make runs comparable to the bit."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
