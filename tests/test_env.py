# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.env` prints the backend of each operator, and why others are not used."""

import json
import re

import torch

from sohes.env import main
from sohes.ops import _binary
from sohes.ops.environment import collect_env


def test_every_operator_reports_its_backend_and_why_not_others():
    env = collect_env()
    assert {"merge_regions", "mask_overlap", "ms_deform_attn", "ms_deform_attn_backward"} <= set(env["operators"])
    for name, devices in env["operators"].items():
        report = devices["cpu"]
        assert report["uses"] not in report["why_not"], name
        assert all(isinstance(reason, str) and reason for reason in report["why_not"].values()), name
    used = env["operators"]["merge_regions"]["cpu"]["uses"]
    assert used == ("cpp" if _binary.find_binary().module is not None else "reference")


def test_text_and_json(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in text
    operators = collect_env()["operators"]
    listed = re.findall(r"^operators on (\w+), in float32:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert [device for device, _ in listed] == list(next(iter(operators.values())))
    for device, lines in listed:
        shown, uses, reasons = {}, None, {}
        for line in lines.splitlines():
            head, _, rest = line.strip().partition(": ")
            if head.startswith("not "):
                reasons[head.removeprefix("not ")] = rest
                continue
            if not line.startswith("    "):
                uses, names, reasons = head, rest, {}
            else:
                names = line  # the list goes on
            for name in filter(None, names.replace(",", " ").split()):
                shown[name] = {"uses": uses, "why_not": reasons}
        assert shown == {name: devices[device] for name, devices in operators.items()}
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["python"] in text


def test_unknown_option(capsys):
    assert main(["--jsn"]) == 2
    assert capsys.readouterr().err == "usage: python -m sohes.env [--json]\n"
