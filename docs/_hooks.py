"""What mkdocs does to these pages besides Markdown. No part of the site, and of no use without mkdocs.

- Formulas (`$...$` and ```math fences, as GitHub renders them) become MathML, so that the site needs no script for them.
- A link out of docs/ (`../grape/maths/kl.py#kl_exact`) leads to a page with that file's text, made for the purpose. The build
  fails if the file is not there, or has no such function, class or constant.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

MATHML = LatexToMathML(fancy_error=False)
ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(\.\./([^)#\s]+)(?:#([\w.-]+))?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])\s*</\1>', re.DOTALL)
INLINE = re.compile(r"(?<![\w$`\\])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])")
# GitHub's Markdown reads these before its formulas do: emphasis, tags, table cells, and escapes that lose their backslash.
HAZARD = re.compile(r"[*<>|]|\\[^A-Za-z]")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def _line(path: str, name: str | None, where: str) -> int | None:
    """The line of `def name`, `class name` or `name = ...` (the last part of a dotted name) in the file `path`."""
    if not (ROOT / path).is_file():
        raise PluginError(f"{where}: {path} is not a file of the repository")
    if name is None:
        return None
    pattern = re.compile(rf"\s*(?:def|class) {re.escape(name.split('.')[-1])}\b|{re.escape(name)}\s*[:=]")
    for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
        if pattern.match(line):
            return number
    raise PluginError(f"{where}: {path} has no {name}")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file outside docs/ that a page links to."""
    linked = {path for page in files.documentation_pages() for path, _ in LINK.findall(page.content_string)}
    for path in sorted(linked):
        _line(path, None, "docs")
        language = {"py": "python", "yaml": "yaml", "yml": "yaml", "md": "text"}.get(path.rsplit(".", 1)[-1], "text")
        text = (ROOT / path).read_text()
        content = f'---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n# {path}\n\n````{language} linenums="1"\n{text}````\n'
        page = File.generated(config, f"source/{path}.md", content=content, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    if page.file.src_uri.startswith("source/"):
        return markdown
    where = page.file.src_uri
    for formula in INLINE.findall(CODE.sub("", markdown)):
        if HAZARD.search(formula):
            raise PluginError(f"{where}: GitHub would not read ${formula}$ as meant; use a command, or a ```math fence")

    def target(match: re.Match[str]) -> str:
        path, name = match.groups()
        line = _line(path, name, where)
        return f"](source/{path}.md" + (f"#__codelineno-0-{line})" if line else ")")

    return LINK.sub(target, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    # Without this mkdocs takes the links to lines of the code for broken ones.
    page.present_anchor_ids |= set(re.findall(r'id="(__codelineno-[\d-]+)"', content))

    def formula(match: re.Match[str]) -> str:
        text = html.unescape(match[2]).strip()
        try:
            return MATHML.convert_with_local_state(text, displaystyle=match[1] == "div")
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: {text!r}: {error}") from error

    return FORMULA.sub(formula, content)
