# SPDX-License-Identifier: Apache-2.0
"""Short and long help of every command, and wrong options as one line."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from sohes import evaluate, pretrain, segment, train
from sohes.__main__ import main as sohes_main
from sohes.cli.command import base_config, fail_clearly, parse
from sohes.cli.options import FLAT, POSITIONAL, OptionError, field_texts, list_options, read_options, show_default
from sohes.cli.short_help import COMMANDS, overview, presets_of, short_help
from sohes.configs.io import ConfigError, to_dict
from sohes.configs.presets import PRESETS, get_preset
from sohes.configs.run import Config

MODULES = {"train": train, "segment": segment, "evaluate": evaluate, "pretrain": pretrain}


def run(command, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        MODULES[command].main(arguments)
    shown = capsys.readouterr()
    return stop.value.code, shown.out + shown.err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_short_help_fits_a_terminal_and_needs_no_torch(command):
    text = short_help(command)
    assert len(text.splitlines()) <= 30
    assert max(map(len, text.splitlines())) <= 80
    code = "import runpy, sys; sys.argv = ['x', '--help']; " + (
        f"\ntry: runpy.run_module('sohes.{command}', run_name='__main__')"
        "\nexcept SystemExit as stop: assert not stop.code, stop.code"
        "\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == text + "\n"


@pytest.mark.parametrize("command", MODULES)
def test_the_short_help_names_options_that_exist_and_their_defaults(command):
    options = {option.name: option for option in list_options(MODULES[command].Arguments())}
    for name, text in COMMANDS[command].main.items():
        default = re.search(r"\(default: ([\w/-]+)\)", text)
        if default:
            assert show_default(options[name]) == default[1]
        else:
            assert name in options


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_the_short_help_has_a_line_for_every_preset(command, capsys):
    code, shown = run(command, ["--help"], capsys)
    assert code == 0
    for name in presets_of(COMMANDS[command].presets):
        assert re.search(rf"^  {name} +\w.{{12,}}$", shown, re.MULTILINE)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("command", MODULES)
def test_the_long_help_has_every_option_with_its_whole_text_and_default(command, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    code, shown = run(command, ["--help-all"], capsys)
    assert code == 0
    flat = " ".join(shown.split())
    default = MODULES[command].Arguments()
    if command == "pretrain":
        default.config = pretrain.get_preset(default.config.preset)
    elif command == "train":
        default.config = get_preset(default.config.preset)
    for option in list_options(default):
        assert len(option.text) > 10, option.name
        assert (option.name.upper() if option.positional else option.name) in flat
        allowed = "" if option.range is None else f"{option.range}; "
        assert f"{option.text} ({allowed}default: {show_default(option)})" in flat
    loose = [line for line in shown.splitlines() if len(line) > min(width, 110) and " " in line.strip()]
    assert loose == []


def test_the_long_help_shows_the_defaults_of_the_preset_asked_for(capsys):
    _, shown = run("train", ["--help-all", "--preset", "base"], capsys)
    shown = " ".join(shown.split())  # as wide as the terminal, which may split a default from its name
    assert f"(default: {PRESETS['base']().model.backbone})" in shown
    assert "(default: base)" in shown


def test_no_sentence_of_a_text_is_cut():
    """Docstrings wrap in the source; the text is one line."""
    texts = field_texts(Config)
    assert texts["images"].endswith("COCO .json files (images only). None: scenes are drawn.")
    assert not any("\n" in text for text in texts.values())


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("train", ["--explore.max-masc", "3"], "unknown option --explore.max-masc: did you mean --explore.max-masks"),
        ("train", ["--image", "x"], "unknown option --image: did you mean --images"),
        ("train", ["--max-masks", "3"], "did you mean --explore.max-masks or --infer.max-masks?"),
        ("train", ["--num_step", "3"], "unknown option --num-step: did you mean --"),
        ("segment", ["--weigths", "x"], "unknown option --weigths: did you mean --weights"),
        ("evaluate", ["--pret", "x"], "unknown option --pret: did you mean --pred"),
        ("pretrain", ["--batchsize", "3"], "unknown option --batchsize: did you mean --batch-size"),
        ("train", ["--xyzzyq"], "unknown option --xyzzyq: --help-all lists all of them"),
        ("train", ["-o", "x"], "unknown option -o: "),
        (
            "train",
            ["--explore.facet", "kee"],
            "--explore.facet kee: did you mean key? expected one of key, output, query, value",
        ),
        ("train", ["--phases", "explore", "intsruct"], "did you mean instruct? expected one of correct, explore, inst"),
        ("segment", ["a.jpg", "--format", "pgn"], "--format pgn: did you mean png? expected one of coco, png, sam"),
        ("evaluate", ["--dataset", "bsd500"], "--dataset bsd500: did you mean bsds500? expected one of ade20k, ade20k"),
        ("train", ["--preset", "tinny"], "unknown preset 'tinny': did you mean 'tiny'"),
        ("train", ["--preset", ""], "unknown preset '': known: tiny, micro"),
        ("train", ["--images"], "--images: expected at least one value"),
        ("train", ["--images", "--out", "x"], "--images: expected at least one value"),
        ("train", ["--seed", "three"], "--seed three: expected a whole number"),
        ("train", ["--seed", "1.5"], "--seed 1.5: expected a whole number"),
        ("train", ["--seed"], "--seed: expected a value"),
        ("train", ["--seed", "--device", "cpu"], "--seed: expected a value"),
        ("train", ["--optim.learning-rate", "nan"], "--optim.learning-rate nan: expected a finite number"),
        ("train", ["--out", ""], "--out '': expected a path"),
        ("train", ["--part", "1"], "--part 1: expected 2 values, or None"),
        ("train", ["--resume=yes"], "--resume: takes no value; --no-resume switches it off"),
        ("train", ["photos"], "unexpected 'photos': every value here belongs to an option, as in --images photos"),
        ("evaluate", ["pred.json"], "unexpected 'pred.json': every value here belongs to an option"),
        ("train", ["--images", "a", "--images", "b"], "--images is given twice: give all values after one --images"),
        ("train", ["--model.backbone-kwargs", "3"], "--model.backbone-kwargs 3: expected a JSON object"),
    ],
)
def test_what_is_wrong_is_one_line(command, given, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, shown = run(command, given, capsys)
    assert code == 2
    assert shown.startswith(f"sohes.{command}: error: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass
class Inner:
    rate: float = 0.5
    switch: bool = True
    pair: tuple[int, int] | None = None
    kwargs: dict[str, Any] = dataclasses.field(default_factory=lambda: {"img_size": 8, "name": "a"})


@dataclasses.dataclass
class Outer:
    photos: tuple[Path, ...] = dataclasses.field(default=(), metadata=POSITIONAL)
    inner: Inner = dataclasses.field(default_factory=Inner)
    flat: Config = dataclasses.field(default_factory=Config, metadata=FLAT)
    kind: Literal["b", "a"] = "b"
    levels: tuple[float, ...] = (0.1,)


@pytest.mark.parametrize(
    ("given", "path", "value"),
    [
        (["--inner.rate", "-1e-3"], "inner.rate", -1e-3),
        (["--inner.rate=2"], "inner.rate", 2.0),
        (["--inner.no-switch"], "inner.switch", False),
        (["--inner.no-switch", "--inner.switch"], "inner.switch", True),
        (["--inner.pair", "-1", "2"], "inner.pair", (-1, 2)),
        (["--inner.pair", "1", "2", "--inner.pair", "None"], "inner.pair", None),
        (["--inner.kwargs.img-size", "16"], "inner.kwargs", {"img_size": 16, "name": "a"}),
        (["--inner.kwargs.name", "b c"], "inner.kwargs", {"img_size": 8, "name": "b c"}),
        (["--inner.kwargs", '{"depth": 2}'], "inner.kwargs", {"depth": 2}),
        (["--kind", "b", "--kind", "a"], "kind", "a"),
        (["--levels"], None, "--levels: expected at least one value"),
        (["--levels", "--kind", "a"], None, "--levels: expected at least one value"),
        (["--levels", "1", "-2", "x.jpg"], None, "--levels x.jpg: expected a finite number"),
        (["a", "--kind", "a", "b"], "photos", (Path("a"), Path("b"))),
        (["--kind", "a", "--", "--odd name.jpg", "-x"], "photos", (Path("--odd name.jpg"), Path("-x"))),
        (["--seed", "7"], "flat.seed", 7),
        (["--instruct.num_steps", "9"], "flat.instruct.num_steps", 9),
        (["--phases", "correct", "explore"], "flat.phases", ("correct", "explore")),
    ],
)
def test_words_become_values_of_their_types(given, path, value):
    default = Outer()
    if path is None:
        with pytest.raises(OptionError, match=re.escape(value)):
            read_options(default, given)
        return
    found = result = read_options(default, given)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)
    assert default == Outer(), "the defaults were changed"
    assert result.inner is not None


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_setting_of_a_preset_can_be_given_as_it_is_shown(name):
    """Parses the default that --help-all shows, option by option."""
    preset = get_preset(name)
    words = []
    for option in list_options(preset):
        if option.hint is bool:
            group, dot, last = option.name[2:].rpartition(".")
            words.append(option.name if option.default else f"--{group}{dot}no-{last}")
        elif option.default not in (None, (), ""):
            shown = show_default(option)
            words += [option.name, *([shown] if option.num_words == 1 else shown.split())]
    assert to_dict(read_options(Config(), _without_entries(words))) == to_dict(preset)


def _without_entries(words):
    """Entries of a dictionary need it as the default; the whole dictionary is given anyway."""
    kept, skip = [], False
    for word in words:
        if word.startswith("--"):
            skip = ".backbone-kwargs." in word
        if not skip:
            kept.append(word)
    return kept


def test_the_command_that_lists_the_commands(capsys):
    assert sohes_main([]) == 0
    shown = capsys.readouterr().out
    assert shown == overview() + "\n"
    for name, command in COMMANDS.items():
        assert f"  {name:8}  {command.summary}\n" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert sohes_main(["--version"]) == 0
    assert sohes_main(["segmnt", "x"]) == 2
    told = capsys.readouterr().err
    assert told == (
        "sohes: error: no command segmnt: did you mean segment? "
        "expected one of env, evaluate, pretrain, segment, train\n"
    )


def test_the_console_command_needs_no_torch_to_list_the_commands():
    """As pip's script calls it."""
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    (target,) = re.findall(r'^\[project\.scripts\]\nsohes = "(.*)"$', project, re.MULTILINE)
    code = (
        "import sys; from importlib.metadata import EntryPoint; sys.argv = ['sohes', '--help']\n"
        f"code = EntryPoint('sohes', {target!r}, 'console_scripts').load()()\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == overview() + "\n"
    assert re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE) == list(COMMANDS)


def test_the_command_that_lists_the_commands_runs_them(capsys):
    assert sohes_main(["env", "--json"]) == 0
    assert '"operators"' in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        sohes_main(["train", "--seed", "x"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "sohes.train: error: --seed x: expected a whole number\n"


def test_base_config_takes_the_last_of_each(tmp_path):
    assert base_config([], Config, Path("x"), get_preset) == get_preset("tiny")
    assert base_config(["--preset"], Config, Path("x"), get_preset) == get_preset("tiny")
    given = ["--preset", "cpu", "--preset=micro", "--out", "a", "--seed", "3"]
    assert base_config(given, Config, Path("x"), get_preset).preset == "micro"
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'config.json'} does not exist")):
        base_config(["--resume", "--out", str(tmp_path)], Config, Path("x"), get_preset)
    assert base_config(["--resume", "--no-resume"], Config, tmp_path, get_preset).preset == "tiny"


def test_a_photo_may_be_named_like_an_option():
    args = parse(segment.Arguments, ["--", "--help"], prog="python -m sohes.segment")
    assert args.photos == (Path("--help"),)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["sohes"], ["sohes", "train", "--help"], ["sohes.segment", "--help"]])
def test_a_help_that_cannot_be_written_is_one_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    name = ".".join(word for word in words if not word.startswith("-"))
    assert done.stderr == f"{name}: error: stdout: No space left on device\n"


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /dev/full")
def test_a_full_disk_is_one_clear_line(capsys):
    with pytest.raises(SystemExit) as stop, fail_clearly("sohes.train"):
        Path("/dev/full").write_text("some")
    assert stop.value.code == 2
    told = "sohes.train: error: No space left on device; what was written stays\n"
    assert capsys.readouterr().err == told
