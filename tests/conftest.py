# SPDX-License-Identifier: Apache-2.0
"""One thread for all tests: the tensors are tiny, and equal thread counts make runs comparable to the bit."""

import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m gpu` chooses what needs a GPU: besides tests that say so, the CUDA and Triton cases of the operators."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("backend") in ("cuda", "triton"):
            item.add_marker(pytest.mark.gpu)
