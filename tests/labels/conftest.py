# SPDX-License-Identifier: Apache-2.0
import pytest
import torch


@pytest.fixture
def two_discs():
    """uint8 [3, 64, 96]: a red disc with a yellow disc inside, on gray."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    image = torch.full((3, 64, 96), 128, dtype=torch.uint8)
    outer = (y - 32) ** 2 + (x - 48) ** 2 < 24**2
    inner = (y - 32) ** 2 + (x - 48) ** 2 < 10**2
    image[:, outer] = torch.tensor([200, 20, 20], dtype=torch.uint8)[:, None]
    image[:, inner] = torch.tensor([230, 220, 30], dtype=torch.uint8)[:, None]
    return image, outer, inner
