# SPDX-License-Identifier: Apache-2.0
import pytest
from report.run_folder import write_run


@pytest.fixture
def full_run(tmp_path):
    return write_run(tmp_path)
