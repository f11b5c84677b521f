"""The pictures of the documentation are those that its code makes, and the page shows all of them."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import docs.pictures

PAGE = Path(__file__).parent.parent / "docs" / docs.pictures.PAGE


def test_every_picture_is_made_by_the_page():
    text = PAGE.read_text(encoding="utf-8")
    made = docs.pictures.make(text)
    assert set(made) == set(re.findall(r"pictures/\w+\.\w+", text))
    assert len(made) == 8
    for name, content in made.items():
        if name.endswith("svg"):
            ElementTree.fromstring(content)
        else:
            assert content.startswith(b"\x89PNG")
    svgs = {name: content for name, content in made.items() if name.endswith("svg")}
    again = docs.pictures.make(text)
    assert {name: again[name] for name in svgs} == svgs  # the same every time
