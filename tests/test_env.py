# SPDX-License-Identifier: Apache-2.0
"""`python -m sohes.env` says which backend runs, and why the others do not."""

import json

import torch

from sohes import _binary
from sohes.env import collect_env, main


def test_every_operator_tells_what_it_uses_and_why_not():
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
    assert "ms_deform_attn on cpu: " in text
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["python"] in text


def test_unknown_option(capsys):
    assert main(["--jsn"]) == 2
    assert capsys.readouterr().err == "usage: python -m sohes.env [--json]\n"
