"""A hook of the docs build: formulas become MathML, which browsers draw by themselves, without a script to fetch."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the formulas that pymdownx.arithmatex has marked in a page."""
    return FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    latex = html.unescape(formula[2]).replace("{aligned}", "{split}")  # the same, by the name that the converter knows
    return convert(latex, display="block" if formula[1] == "div" else "inline")
