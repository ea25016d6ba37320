"""For the build of the documentation: turns the docstrings, numpydoc with reStructuredText roles, into Markdown.

Griffe's own numpydoc parser takes what stands behind a colon for a type. Here it is a shape, or a sentence.
"""

import html
import re
from typing import Any

import griffe

ITEM_SECTIONS = ("Parameters", "Returns", "Raises", "Warns", "Attributes", "Yields")
CODE = re.compile(r"(``.+?``|`[^`]+`)")
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`~?([^`]+)`")
ADDRESS = re.compile(r"(?<!<)(https?://[^\s,;)]*[^\s,;).])")
STAR = re.compile(r"\*(?=\w+[),\]])")  # of (N, C, *spatial), not of *emphasis in a text*


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called by Griffe for each package."""
        _rewrite(pkg)


def _rewrite(found: griffe.Object) -> None:
    if found.docstring is not None:
        found.docstring.value = "\n".join(_markdown(found.docstring.value.splitlines(), found))
    for member in found.members.values():
        if isinstance(member, griffe.Object):
            _rewrite(member)


def _markdown(lines: list[str], found: griffe.Object) -> list[str]:
    result: list[str] = []
    section, number = "", 0
    while number < len(lines):
        line = lines[number]
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if following and set(following) == {"-"}:
            section = line
            result += ["", f"**{section}**", ""]
            number += 2
        elif line.lstrip().startswith(">>>"):
            end = next((n for n in range(number, len(lines)) if not lines[n].strip()), len(lines))
            result += ["", "```pycon", *lines[number:end], "```", ""]
            number = end
        elif line.endswith("::") and not following.strip():
            start = number + 2
            indent = len(lines[start]) - len(lines[start].lstrip())
            inside = [n for n in range(start, len(lines)) if lines[n].strip() and not lines[n].startswith(" " * indent)]
            end = inside[0] if inside else len(lines)
            block = "\n".join(text[indent:] for text in lines[start:end]).strip("\n").split("\n")
            result += [_inline(line[:-2] + ":" * (line != "::"), found), "", "```text", *block, "```", ""]
            number = end
        else:
            if section in ITEM_SECTIONS and line and not line.startswith(" "):
                line = _item(line, found, following.startswith(" "))
            else:
                line = _inline(line, found)
            result.append(line)
            number += 1
    return result


def _item(line: str, found: griffe.Object, described: bool) -> str:
    """``name : what it is`` as the first line of a list's item."""
    names, colon, what = line.partition(" : ")
    names = ", ".join(f"`{name}`" for name in names.split(", ")) if not names.startswith("(") else f"`{names}`"
    return f"- {names}{': ' if colon else ''}{_inline(what, found)}{'  ' if described else ''}"


def _inline(line: str, found: griffe.Object) -> str:
    text = ROLE.sub(lambda role: _reference(role[1], found), line)
    parts = CODE.split(text)
    parts[::2] = [ADDRESS.sub(r"<\1>", STAR.sub(r"\\*", part)) for part in parts[::2]]
    return "".join(parts)


def _reference(name: str, found: griffe.Object) -> str:
    """``name`` as a link to where it is documented, as plain code where it is not; names without a dot are local."""
    target = name
    if "." not in name:
        place: griffe.Object | None = found
        while place is not None and name not in place.members:
            place = place.parent
        target = f"{place.path}.{name}" if place is not None else name
    module, _, last = target.rpartition(".")
    same = found.package.members.get(last)
    if module == found.package.path and isinstance(same, griffe.Module) and last in same.members:
        target = f"{target}.{last}"  # konv.geometry, the function, in a module of this name
    return f'<autoref optional identifier="{html.escape(target)}"><code>{html.escape(name)}</code></autoref>'
