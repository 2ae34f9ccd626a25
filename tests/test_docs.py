# SPDX-License-Identifier: Apache-2.0
"""The documentation is right: blocks that CI can run, options, files and links that exist."""

import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import pytest

from sohes import evaluate, pretrain, segment, train
from sohes.cli.command import base_config
from sohes.cli.options import read_options
from sohes.cli.short_help import COMMANDS as sohes_commands
from sohes.configs.presets import PRESETS, get_preset
from sohes.configs.pretrain import PretrainConfig
from sohes.configs.pretrain import get_preset as get_pretrain_preset
from sohes.configs.run import Config

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / ".ci" / "readme_commands.py").is_file():
    pytest.skip("not run from a checkout", allow_module_level=True)
_spec = importlib.util.spec_from_file_location("readme_commands", ROOT / ".ci" / "readme_commands.py")
readme_commands = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme_commands)

DOCUMENTS = [
    *readme_commands.documents(),
    ROOT / "sohes" / "weights" / "sohes-micro" / "README.md",
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
]
COMMANDS = {"train": train, "segment": segment, "evaluate": evaluate, "pretrain": pretrain}
NAMES = [document.relative_to(ROOT).as_posix() for document in DOCUMENTS]


def commands_of(document):
    """(command, arguments) of every `python -m sohes.X ...` of a document, in blocks and in lines of text."""
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in [*text.splitlines(), *(" ".join(one.split()) for one in inline)]:
        # In lines of text a command ends at its backquote.
        found = re.search(r"-m sohes\.(\w+)([^`]*)", line)
        if found and "[" not in found[2] and (line.lstrip().startswith(("python", "torchrun", "srun", "--"))):
            yield found[1], shlex.split(re.sub(r"\$\w+", "0", found[2]), comments=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_option_that_is_named_exists(document):
    for name, given in commands_of(document):
        if name == "env":
            assert given in ([], ["--json"])
            continue
        if {"--help", "--help-all"} & set(given):
            continue
        default = COMMANDS[name].Arguments()
        given = [word.replace("NAME", "felzenszwalb") if before == "--baseline" else word
                 for before, word in zip(["", *given], given, strict=False)]  # fmt: skip
        fresh = [word for word in given if word != "--resume"]
        if name == "train":
            default.config = base_config(fresh, Config, Path(), get_preset)
        elif name == "pretrain":
            default.config = base_config(fresh, PretrainConfig, Path(), get_pretrain_preset)
        read_options(default, given)


def test_commands_are_found():
    """The test above looks at something."""
    found = {name: list(commands_of(document)) for name, document in zip(NAMES, DOCUMENTS, strict=True)}
    assert {name for name, _ in found["README.md"]} >= {"train", "segment", "evaluate", "pretrain", "env"}
    assert len(found["docs/datasets.md"]) >= 3
    assert len(found["docs/results.md"]) >= 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_stand_in_blocks_that_say_what_they_are(document):
    text = document.read_text(encoding="utf-8")
    readme_commands.blocks(document)  # raises for a block without a language
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    typed = r"^ {4,}(?:python|pip|torchrun|srun|bash|cmake|pytest|from sohes|import)\b.*"
    assert re.findall(typed, outside, re.MULTILINE) == []


def test_the_readme_names_every_preset_and_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in [*PRESETS, "tiny-h200", "micro-cpu"]:
        assert f"`{name}`" in text or f"--preset {name}" in text, name
    for name in sohes_commands:
        assert f"python -m sohes.{name}" in text, name


def test_files_that_are_named_exist():
    for document in DOCUMENTS:
        for path in re.findall(r"(?:benchmarks|tests|docs|csrc|sohes)/[\w/.-]+\.(?:py|md|sh|h|cpp|cu)\b",
                               document.read_text(encoding="utf-8")):  # fmt: skip
            assert (ROOT / path).exists(), f"{document.name}: {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = (document.parent / path).resolve() if path else document
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_set_of_the_results_is_described():
    described = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    section = described.partition("## The sets of the results\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \| \d+", section, re.M)) == {
        "bsds_val",
        "carparts50",
        "coco128_seg",
        "coco_tiny100",
    }
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if re.search("bsds_val|carparts50|coco128_seg|coco_tiny100", text) and document.name != "datasets.md":
            assert "datasets.md#the-sets-of-the-results" in text, document
        assert not re.search(r"benchmarks/\w+\.py (?:SET|bsds_val|carparts50|coco128_seg|coco_tiny100)\b", text), (
            document
        )


def test_the_blocks_become_scripts_in_order(tmp_path, monkeypatch):
    scripts = readme_commands.write_scripts(tmp_path / "scripts")
    assert scripts[0].name == "01-README.sh"
    assert scripts[0].read_text() == "pip install . && python -m sohes.train\n"
    assert {script.suffix for script in scripts} == {".sh", ".py"}
    for script in scripts:
        if script.suffix == ".py":
            compile(script.read_text(), script.name, "exec")
    (tmp_path / "README.md").write_text("```\npython\n```\n")
    with pytest.raises(ValueError, match=r"README.md: expected a block of bash, python or text, got ```$"):
        readme_commands.blocks(tmp_path / "README.md")


@pytest.mark.parametrize("script", ["ablate_explore", "ablate_refine", "bench_explore"])
def test_a_set_that_is_not_there_is_one_line(script, tmp_path, monkeypatch, capsys):

    monkeypatch.setattr("sys.argv", [script, str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"), run_name="__main__")
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message == f"{script}: error: no such file or folder: {tmp_path / 'nowhere'} (expected COCO JSON)\n"
