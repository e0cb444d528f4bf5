"""An HTML parser for tests, and a text with markup that must be escaped."""

import html.parser

HOSTILE = "</title><script>alert(1)</script><img src=\"http://evil.example/x\" onerror='alert(2)'>&amp;"
VOID = {"meta", "img", "br", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Elements with their attributes, text by element; complains of tags that do not fit."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
