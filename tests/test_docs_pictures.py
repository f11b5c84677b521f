"""The build makes a page's pictures from its code, the same every time (tests/test_docs.py looks at all of them)."""

import posixpath
import re
from pathlib import Path

import docs.pictures

PAGES = docs.pictures.pages(Path(__file__).parent.parent / "docs")


def test_pictures_are_the_same_every_time():
    text = PAGES["seeing.md"]
    made, again = docs.pictures.make(text, "seeing.md"), docs.pictures.make(text, "seeing.md")
    assert set(made) == set(re.findall(r"pictures/\w+\.\w+", text))
    assert len(made) == 8
    svgs = {name for name in made if name.endswith("svg")}
    assert {name: made[name] for name in svgs} == {name: again[name] for name in svgs}


def test_no_two_pages_make_one_picture():
    shown = [
        posixpath.join(posixpath.dirname(page), name)
        for page, text in PAGES.items()
        for name in set(re.findall(r"pictures/\w+\.\w+", text))
    ]
    assert len(shown) > len(PAGES) > 1
    assert len(shown) == len(set(shown))
