# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
from micro import micro_model

from sohes.configs.run import ModelConfig


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """Settings of the smallest model with all modules; keywords change fields."""
    return micro_model
