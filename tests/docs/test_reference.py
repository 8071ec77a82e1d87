"""The generated reference is complete: every command, setting and public name is in it, with words of its own."""

import re

import pytest
import typer

import handful
from docs.scripts import reference
from handful.cli import app
from handful.methods.catalog import METHODS


def test_every_command_has_a_section_and_every_option_a_meaning():
    text = reference.commands()
    for words, command in reference.every_command(typer.main.get_command(app)):
        assert f"\n## {' '.join(words)}\n" in text
        assert command.help
    assert "| `-i`, `--input` | required | Folder of scans" in text
    assert not re.findall(r"^\|.*\|  \|$", text, re.MULTILINE), "an option without a meaning"


def test_every_method_has_a_section_and_every_setting_a_meaning():
    text = reference.settings()
    for method in METHODS:
        assert f"\n## {method}\n" in text
    assert "| `auto_sam_unet.…` |  | Any setting of [`auto-sam-unet`](#auto-sam-unet). |" in text
    assert not re.findall(r"^\|.*\|  \|$", text, re.MULTILINE), "a setting without a meaning"


def test_every_public_name_is_documented_and_every_documented_name_is_public():
    documented = re.findall(r"^::: (?:\w+\.)+(\w+)$", reference.python(), re.MULTILINE)
    assert sorted(documented) == sorted(set(handful.__all__) - {"__version__"})


@pytest.mark.parametrize("value", [(True, "true"), (None, "none"), ((1, 2), "1,2"), (0.5, "0.5")])
def test_defaults_are_shown_as_they_are_typed(value: tuple[object, str]):
    default, shown = value
    assert reference.shown(default) == shown
