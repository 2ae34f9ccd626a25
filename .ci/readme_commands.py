# SPDX-License-Identifier: Apache-2.0
"""Write the ```bash and ```python blocks of the documentation as scripts, so that CI runs what it says.

    python3 .ci/readme_commands.py FOLDER

FOLDER then holds one file per block, numbered in the order to run them in, all in the same working folder: README.md
first, whose first command writes runs/default, which the others need. Blocks that need other data or machines are
```text.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {"bash": ".sh", "python": ".py"}


def documents() -> list[Path]:
    """The documents whose blocks are run, in order."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block. Raises ValueError for one without a language."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for language, _ in found:
        if language not in (*SUFFIXES, "text"):
            raise ValueError(f"{document.name}: expected a block of bash, python or text, got ```{language}")
    return found


def write_scripts(folder: Path) -> list[Path]:
    """One script per block to be run."""
    folder.mkdir(parents=True)
    scripts = []
    for document in documents():
        for language, text in blocks(document):
            if language in SUFFIXES:
                scripts.append(folder / f"{len(scripts) + 1:02}-{document.stem}{SUFFIXES[language]}")
                scripts[-1].write_text(text, encoding="utf-8")
    return scripts


if __name__ == "__main__":
    for script in write_scripts(Path(sys.argv[1])):
        print(script)
