"""The documents for contributors name what exists: files, folders, and names in files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("CONTRIBUTING.md", "docs/architecture.md")
PATH = r"[\w./-]*(?:\.(?:py|md|json|toml)|/|/run)"


def place(named: str) -> Path:
    """A path of the checkout, or of the package."""
    inside = ROOT / "ddn_cvx" / named
    return inside if inside.exists() else ROOT / named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(rf"`({PATH})`", text) + re.findall(r"\]\((?!https?:|#)([^)]+)\)", text)
    assert len(named) > 20
    missing = sorted({path for path in named if not place(path).exists()})
    assert not missing


def test_a_name_beside_its_file_is_in_it() -> None:
    """Written as `file.py` `Class.method`."""
    text = "\n".join((ROOT / document).read_text(encoding="utf-8") for document in DOCUMENTS)
    pairs = re.findall(r"`([\w./-]+\.py)`\s+`([A-Za-z_][\w.]*)`", text)
    assert pairs
    for file, name in pairs:
        source = place(file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"(?:def|class) {part}\b|^{part}\b", source, re.MULTILINE), name
