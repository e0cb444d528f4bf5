"""The HTML page: well-formed and self-contained, with all text escaped."""

import base64

import pytest

from easi3r_jax.io.pictures.page import Media, Row, Table, Text, page
from tests.html_page import HOSTILE, Reader


def made(text):
    media = [Media("image/png", b"png", text), Media("video/mp4", b"mp4", text)]
    parts = [Row(media), Table((text, "b"), [(text, "1"), ("x", text)], frozenset({1}), numbers=True), Text(text)]
    return page(text, [text], [(text, parts)], text)


def test_the_page_is_well_formed_and_holds_its_content():
    read = Reader(made("a b"))
    (image,), (video,) = read.all("img"), read.all("video")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == b"png"
    assert base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,")) == b"mp4"
    assert image["alt"] == video["aria-label"] == "a b"
    assert {tag for tag, text in read.texts if text == "a b"} == {
        *("title", "h1", "h2", "p", "th", "td", "figcaption", "footer")
    }
    assert [row.get("class") for row in read.all("tr")] == [None, None, "marked"]
    assert len(read.all("th")) == 4 and len(read.all("td")) == 2


@pytest.mark.parametrize("text", [HOSTILE, "\"'><svg onload=x>", "]]>", "<!--", "&#60;b&#62;", "日本語 ñ 😀"])
def test_text_is_escaped(text):
    plain, read = Reader(made("plain")), Reader(made(text))
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in plain.elements]
    assert [set(attributes) for _, attributes in read.elements] == [set(a) for _, a in plain.elements]
    assert {found for tag, found in read.texts if tag == "h1"} == {text}
    assert read.all("img")[0]["alt"] == text


def test_unprintable_characters_are_replaced():
    """A lone surrogate of a file name, control characters, and a right-to-left override."""
    text = made("a\udcffb\x00c\x1bd\u202ee\u00a0f")
    assert "a\ufffdb\ufffdc\ufffdd\ufffde\u00a0f" in text
    text.encode("utf-8")


def test_nothing_is_fetched_and_no_script_runs():
    text = made("a")
    read = Reader(text)
    policy = next(meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';")
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in read.elements}
    for _, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in text and "@import" not in text and "http:" not in text


def test_light_dark_and_print_styles():
    text = made("a")
    for needed in ("color-scheme: light dark", "prefers-color-scheme: dark", "@media print", 'lang="en"'):
        assert needed in text
