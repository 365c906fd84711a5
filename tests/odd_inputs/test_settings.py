"""params.yaml and `--set`: what cannot be read is refused with file and line, what was set reads back as it was given."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML
from typer.testing import CliRunner

from grape import params, settings
from grape.cli import app
from grape.errors import GrapeError

TEXT = "a: 1  # one\nb:\n  c: 2  # two\nd: [x]\nalgorithms: {}\n"


def read(text: str) -> Any:
    """By YAML 1.2 as grape and DVC read it, and by 1.1 as most others do: they must agree."""
    found = YAML(typ="safe").load(text)
    other = yaml.safe_load(text)
    assert found == other and repr(found) == repr(other)
    return found


# What stands behind `--set a=` -> the value both parsers must read.
@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("1e-6", 1e-6),
        ("1E-6", 1e-6),
        ("-2.5e-07", -2.5e-07),
        ("1e22", 1e22),
        ("5e3", 5000.0),
        ("0.1", 0.1),
        ("1.0e-3", 0.001),
        (".5", 0.5),
        ("3.", 3.0),
        ("-0.0", -0.0),
        ("1e-320", 1e-320),
        ("7", 7),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("no", "no"),
        ("On", "On"),
        ("y", "y"),
        ("'true'", "true"),
        ("'1e-6'", "1e-6"),
        ('"007"', "007"),
        ("1:30", "1:30"),
        ("12:30:45", "12:30:45"),
        ("0b1", 1),
        ("2024-01-02", "2024-01-02"),
        ("2024-01-02 10:00:00", "2024-01-02 10:00:00"),
        ("'='", "="),
        ("'<<'", "<<"),
        ("my #1 data", "my #1 data"),
        ("#data", "#data"),
        ("a#b", "a#b"),
        ("text # with # marks", "text # with # marks"),
        ("'a #b'", "a #b"),
        ("'it''s'", "it's"),
        (r'"tab\there"', "tab\there"),
        (r'"line\nfeed"', "line\nfeed"),
        ("ein Wörterbuch", "ein Wörterbuch"),
        ("\N{GRAPES}", "\N{GRAPES}"),
        (r'"\u2028"', "\u2028"),
        (r'"\x85\uFEFF"', "\x85\ufeff"),
        (r"C:\data\x", r"C:\data\x"),
        ("a:b", "a:b"),
        ("- ", [None]),
        ("'- x'", "- x"),
        ("'? x'", "? x"),
        ("'{x}'", "{x}"),
        ("'%x'", "%x"),
        ("'@x'", "@x"),
        ("'&x'", "&x"),
        ("'*x'", "*x"),
        ("'!x'", "!x"),
        ("'null'", "null"),
        ("'~'", "~"),
        ("'.nan'", ".nan"),
        ("'.inf'", ".inf"),
        ("' padded '", " padded "),
        ("''", ""),
        ("x" * 300 + " " + "y" * 300, "x" * 300 + " " + "y" * 300),
        ("[]", []),
        ("[1e-6, no, 'yes', a:b, 012]", [1e-6, "no", "yes", "a:b", 12]),
        ("[[1], [2, [3e-9]]]", [[1], [2, [3e-9]]]),
        ("{}", {}),
        ("{x: 1e-6, 'no': on}", {"x": 1e-6, "no": "on"}),
        ("[{a: b:c}, {d: {e: 'f #g'}}]", [{"a": "b:c"}, {"d": {"e": "f #g"}}]),
        ("{x: {y: [1, {z: no}]}}", {"x": {"y": [1, {"z": "no"}]}}),
        ("[&k 1, *k]", [1, 1]),
        ('{"a": 1}', {"a": 1}),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_what_was_set_reads_back(given: str, value: Any) -> None:
    for key in ("a", "b.c", "algorithms.mine.knob"):
        after = settings.apply(TEXT, "params.yaml", [f"{key}={given}"])
        found = read(after)
        for part in key.split("."):
            found = found[part]
        assert found == value and type(found) is type(value) and repr(found) == repr(value)
        # `{}` of the text became a mapping of lines; everything else stands as it stood
        assert re.findall(r"#.*", after)[:1] == ["# one"] or key == "a"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("a", "key=value"),
        ("=1", "key=value"),
        (".a=1", "key=value"),
        ("b.=1", "key=value"),
        ("a b=1", "unknown key a b"),
        ("e=1", "unknown key e"),
        ("b.d=1", "known here: c"),
        ("a.x=1", "unknown key a.x"),
        ("d.0=1", "unknown key d.0"),
        ("a=[", "cannot read the value"),
        ("a={", "cannot read the value"),
        ("a=}", "cannot read the value"),
        ("a='x", "cannot read"),
        ("a=[1, 2] # two", "would be a comment"),
        ("a='x' # y", "would be a comment"),
        ("a=x: y: z", "cannot read the value"),
        ("a=*x", "undefined alias"),
        ("a=!!python/name:os.system", "could not determine"),
        ("a=!x 1", "could not determine"),
        ("a=!!binary aGk=", "bytes"),
        ("a={1: x}", "not text"),
        ("a={x: 1, x: 2}", "duplicate"),
        ("a=\x00", "not allowed"),
        ("a=\x07", "not allowed"),
        ("a=\udcff", "surrogates"),
        ("a=" + "9" * 5000, "limit"),
        ("a=" + "[" * 3000, "recursion"),
        ("a=!!int x", "invalid literal"),
        ("a=1\n---\n2", "cannot read"),
        ("algorithms.x=1", None),
        ("algorithms..x=1", "key=value"),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_what_cannot_be_set(assignment: str, words: str | None) -> None:
    if words is None:
        assert read(settings.apply(TEXT, "params.yaml", [assignment]))["algorithms"] == {"x": 1}
        return
    with pytest.raises(GrapeError, match=words) as caught:
        settings.apply(TEXT, "params.yaml", [assignment])
    assert "--set" in str(caught.value.where)


@pytest.mark.parametrize("text", ["a: &k {x: 1}\nb: *k\n", "a: &k\n  x: 1\nb: *k  # the same\n"])
def test_a_value_shared_by_an_anchor_is_not_changed_in_two_places(text: str) -> None:
    with pytest.raises(GrapeError, match="anchor"):
        settings.apply(text, "params.yaml", ["b.x=2"])
    assert read(settings.apply(text, "params.yaml", ["b={x: 2}"])) == {"a": {"x": 1}, "b": {"x": 2}}


def test_a_merged_key_is_set_where_it_was_asked_for() -> None:
    after = settings.apply("a: &k {x: 1, y: 2}\nb:\n  <<: *k\n", "params.yaml", ["b.x=3"])
    assert read(after) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_mark_and_link_stay(project_dir: Path, ends: str, mark: str) -> None:
    link, real = project_dir / "params.yaml", project_dir / "shared" / "real.yaml"
    real.parent.mkdir()
    before = mark + link.read_text().replace("\n", ends)
    real.write_bytes(before.encode())
    real.chmod(0o640)
    link.unlink()
    link.symlink_to("shared/real.yaml")
    params.set_values(link, ["rl.steps=7", "rl.learning_rate=1e-6", "prepare.source=my #1 data"])
    after = real.read_bytes().decode()
    assert os.readlink(link) == "shared/real.yaml" and real.stat().st_mode & 0o777 == 0o640
    changed = [(a, b) for a, b in zip(before.split(ends), after.split(ends), strict=True) if a != b]
    assert [b.split("  #")[0].strip() for _, b in changed] == ['source: "my #1 data"', "steps: 7", "learning_rate: 1.0e-06"]
    assert after.count("\r") == (after.count("\n") if ends == "\r\n" else 0) and after.startswith(mark)
    assert sorted(path.name for path in real.parent.iterdir()) == ["real.yaml"]
    assert params.load(link).rl.learning_rate == 1e-6 and params.load(link).prepare.source == "my #1 data"


# A file that is no params.yaml -> words of the refusal. {} stands for the whole file as it was.
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0" * 100, "params.yaml:1"),
        (b"{}\0", "not valid YAML"),
        (b"seed: 0\nx: \x01\n", "params.yaml:2"),
        (b"\xff\xfe" + "seed: 0".encode("utf-16-le"), "not UTF-8"),
        ("seed: 0 # Größe".encode("latin-1"), "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
        (b"PK\x03\x04zip", "not valid YAML"),
        (b"seed: [", "not valid YAML"),
        (b"", "not a mapping"),
        (b"just text", "not a mapping"),
        (b"- a\n- b\n", "not a mapping"),
        (b"3", "not a mapping"),
        (b"seed: 0\n---\nseed: 1\n", "another document"),
        (b"seed: 0\nseed: 1\n", "duplicate key"),
        (b"seed:\n\t- 0\n", "params.yaml:2"),
        (b"seed: 2024-13-45\n", "month must be"),
        (b"seed: !!python/object:os.system {}\n", "could not determine"),
        (b"seed: *nothing\n", "undefined alias"),
        (b"[" * 5000, "not valid YAML"),
        (b"seed: " + b"9" * 5000, "limit"),
        (codecs.BOM_UTF8 + b"seed: 0\n", "is missing"),
        (b"? {a: b}\n: c\n", "unhashable"),
        (b"seed: \xc3\x28\n", "not UTF-8"),
    ],
    ids=lambda x: repr(x)[:40],
)
def test_a_file_that_is_none(project_dir: Path, data: bytes, words: str) -> None:
    path = project_dir / "params.yaml"
    path.write_bytes(data.replace(b"{}", path.read_bytes()) if data.startswith(b"{}") else data)
    before = path.read_bytes()
    (project_dir / ".dvc").mkdir()
    (project_dir / ".dvc" / "config").touch()
    for command in (["plan"], ["plan", "--json"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and words in result.stderr and "params.yaml" in result.stderr, result.output
        assert "Traceback" not in result.output and result.stdout == ""
    for attempt in (lambda: params.load(path), lambda: params.set_values(path, ["seed=3"])):
        with pytest.raises(GrapeError):
            attempt()
    assert path.read_bytes() == before and not list(project_dir.glob("*.partial"))


def test_a_byte_order_mark_is_read_over(project_dir: Path) -> None:
    path = project_dir / "params.yaml"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert params.load(path).seed == 0


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_a_folder_in_place_of_a_file(project_dir: Path, name: str) -> None:
    (project_dir / name).unlink()
    (project_dir / name).mkdir()
    result = CliRunner().invoke(app, ["plan"])
    assert result.exit_code == 2 and name in result.stderr and "folder" in result.stderr
