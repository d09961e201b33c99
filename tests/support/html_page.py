"""A parser of HTML pages that requires them to be well-formed."""

from __future__ import annotations

from html.parser import HTMLParser

_EMPTY = {"meta", "img", "input", "path"}


class Page(HTMLParser):
    """Requires every element that is opened to be closed in turn, and collects what a test asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._texts: list[tuple[str, str]] = []
        self._scripts: dict[str | None, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)
            self._texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self._scripts[self.all("script")[-1].get("id")] = data
            return
        if self.open[-1:] != ["style"]:
            self.text += data
        if self._texts:
            tag, text = self._texts[-1]
            self._texts[-1] = (tag, text + data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of this tag."""
        return [attributes for seen, attributes in self.seen if seen == tag]

    def texts(self, tag: str) -> list[str]:
        """The text at the start of each element of this tag, up to the next element."""
        return [text for seen, text in self._texts if seen == tag]

    def script(self, name: str) -> str:
        """The content of the script with this id."""
        return self._scripts[name]
