# SPDX-License-Identifier: Apache-2.0
"""Print the commands of the README's ```bash blocks, one a line, so that CI runs what the README says."""

import re
from pathlib import Path

readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
for block in re.findall(r"^```bash\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL):
    for line in block.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            print(line.strip())
