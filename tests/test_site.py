"""The site of documents (`make docs`): the API's page has every public name once, and every document has its place."""

import pathlib
import re

import easi3r_jax as e3r

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_public_name_has_one_entry():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    entries = re.findall(r"^:::(.*)$", page, flags=re.MULTILINE)
    assert sorted(entries) == [f" easi3r_jax.{name}" for name in e3r.__all__]


def test_every_document_is_in_the_navigation_once():
    """And no others: the hooks add those that are not in docs/."""
    hooks = (DOCS / "hooks.py").read_text(encoding="utf-8")
    made = dict(re.findall(r'^ {4}"(.+)": "(\w+\.md)",$', hooks, flags=re.MULTILINE))
    assert "README.md" in made and all((ROOT / source).is_file() for source in made)
    listed = re.findall(r"^ +- .+: (\w+\.md)$", SITE, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*made.values(), *(path.name for path in DOCS.rglob("*.md"))])
