"""For griffe, which reads the sources for the reference: docstrings as we write them become Markdown.

Ours are plain text: 'Args:' with indented lines below, 'Raises: ...' in one line, formulas without marks, and what is
indented is meant to stand as it is. The comment beside a field is its docstring.
"""

import re

from griffe import Attribute, Docstring, Extension, Object

HEAD = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Source|Shapes|Note):(?: (.*))?")
LISTS = {"Args": "Parameters", "Attributes": "Attributes"}
ITEM = re.compile(r" {4}\*{0,2}(\w+(?:, \*{0,2}\w+)*): (.*)")  # of a list
MARKUP = str.maketrans({"<": "&lt;", "*": "&#42;", "$": "&#36;", "[": "&#91;", "\\": "&#92;", "|": "&#124;"})


def plain(text: str) -> str:
    """Text in which nothing but `code` is markup."""
    parts = text.split("`")
    return "`".join(part.translate(MARKUP) if i % 2 == 0 else part for i, part in enumerate(parts))


def markdown(docstring: str) -> str:
    """The whole docstring: paragraphs, what is told of arguments as a list, and what is indented otherwise as code."""
    out: list[str] = []
    section = ""  # that indented lines belong to, until a blank line
    for line in docstring.splitlines():
        if head := HEAD.fullmatch(line):
            section = head[1]
            out += ["", f"**{LISTS.get(section, section)}:** {plain(head[2] or '')}".rstrip()]
            out += [""] * (head[2] is None)
        elif section in LISTS and (item := ITEM.fullmatch(line)):
            out.append(f"- `{item[1]}`: {plain(item[2])}")
        elif section and line.startswith(" "):
            out.append("    " * (section in LISTS) + plain(line.strip()))
        elif line.startswith("    "):
            out += [line] if out and out[-1].startswith("    ") else ["", line]
        else:
            section = ""
            out.append(plain(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out))


class Ours(Extension):
    """Called by griffe for each thing that it reads."""

    def on_object(self, *, obj: Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_attribute_instance(self, *, attr: Attribute, **_) -> None:
        comment = attr.lines[0].partition("  # ")[2] if attr.docstring is None and attr.lines else ""
        if comment and attr.parent is not None and attr.parent.is_class:
            attr.docstring = Docstring(comment, lineno=attr.lineno, parent=attr)
