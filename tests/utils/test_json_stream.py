# SPDX-License-Identifier: Apache-2.0
"""The JSON reader against the standard library's, with windows of a few bytes."""

import json

import pytest

from sohes.utils.json_stream import JsonReader, parse_json

DOCUMENT = {
    "info": {"note": 'quotes " and \\ and ] } [', "year": 2024},
    "numbers": [0, -1.5e-3, 1234567890123456789, True, None],
    "images": [{"file_name": "grün 木.png", "id": 1}, {"id": 2}],
    "none": [],
    "deep": [[[]], {"a": {"b": [1]}}],
    "last": 98765,
}


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_reads_what_json_reads(tmp_path, chunk_bytes, options):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(DOCUMENT, **options), encoding="utf-8")
    found = {}
    with JsonReader(path, chunk_bytes) as reader:
        for name in reader.members():
            found[name] = list(reader.elements()) if reader.peek() == "[" else reader.value()[0]
        assert reader.peek() == ""
    text = path.read_bytes()
    for name, expected in DOCUMENT.items():
        if isinstance(expected, list):
            assert [value for value, _, _ in found[name]] == expected
            assert [json.loads(text[start:stop]) for _, start, stop in found[name]] == expected
        else:
            assert found[name] == expected


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[12]")
    with JsonReader(path) as reader:
        assert list(reader.elements()) == [(12, 4, 6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"^expected '\[', got the end of the file at byte 0$"),
        ("{}", r"^expected '\[', got '{' at byte 0$"),
        ("[1, 2", r"^expected ',', got the end of the file at byte 5$"),
        ("[1 2]", r"^expected ',', got '2' at byte 3$"),
        ('[{"a": 1}, {"a":', r"^Expecting value at byte 16$"),
        ('[{"a": "b', r"^Unterminated string starting at at byte 7$"),
        ("[oops]", r"^Expecting value at byte 1$"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_names_the_byte_that_is_not_json(tmp_path, text, message, chunk_bytes):
    path = tmp_path / "a.json"
    path.write_text(text)
    with JsonReader(path, chunk_bytes) as reader, pytest.raises(ValueError, match=message):
        list(reader.elements())


def read_members(reader):
    return [reader.value() for _ in reader.members()]


def test_what_is_nested_too_deep_is_an_error_of_the_text(tmp_path):
    """Deeper than Python's own reader supports, within a window and across several."""
    deep = "[" * 200_000 + "]" * 200_000
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": {deep}}}')
    with JsonReader(path) as reader, pytest.raises(ValueError, match=r"^values are nested too deep at byte 6$"):
        read_members(reader)
    with pytest.raises(ValueError, match=r"^values are nested too deep$"):
        parse_json(deep)


@pytest.mark.parametrize("text", ["{1: 2}", "{[1]: 2}", "{null: 2}", '{"a": 1, {}: 2}'])
def test_names_of_members_are_strings(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with JsonReader(path) as reader, pytest.raises(ValueError, match=r"^expected a name in quotes at byte \d$"):
        read_members(reader)
