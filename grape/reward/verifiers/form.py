"""What form a response has, whatever it says: a pattern, a list, tags."""

from __future__ import annotations

import re
from typing import Literal

import regex

from grape.reward.verdict import Options
from grape.reward.verifiers.patterns import as_re, found
from grape.reward.verifiers.reading import blocks, boxed, text_of
from grape.sandbox.protocol import NotJson, read
from grape.types import Prompt


class Matches(Options):
    """`matches`: the whole response matches the regular expression `pattern`. One that takes too long gives no score."""

    pattern: str

    def model_post_init(self, context: object) -> None:
        re.compile(self.pattern)
        regex.compile(as_re(self.pattern))

    def score(self, prompt: Prompt, text: str) -> float:
        return float(found(text_of(self.pattern), text_of(text).strip(), whole=True))


class Format(Options):
    """`format`: the response has the form `form`, whatever it says.

    json: strict JSON. line: one line. list: every line begins with a bullet or a number. fence: one fenced block, of `language` if
    named, and nothing else. boxed: exactly one \\boxed{}. tags: the elements `tags` once each, in order, nothing outside them.
    """

    form: Literal["json", "line", "list", "fence", "boxed", "tags"]
    language: str = ""
    tags: tuple[str, ...] = ("think", "answer")

    def score(self, prompt: Prompt, text: str) -> float:
        body = text_of(text).strip()
        if self.form == "json":
            try:
                read(body)
            except NotJson:
                return 0.0
            return 1.0
        if self.form == "boxed":
            return float(len(boxed(body)) == body.count("\\boxed") == 1)
        if self.form == "tags":
            named = [re.escape(tag) for tag in self.tags]
            once = all(body.count(f"<{tag}>") == body.count(f"</{tag}>") == 1 for tag in self.tags)
            return float(once and re.fullmatch(r"\s*".join(rf"<{n}>.*?</{n}>" for n in named), body, re.DOTALL) is not None)
        if self.form == "fence":
            fenced = blocks(body)
            whole = re.fullmatch(r"(`{3,}|~{3,})[^\n]*\n(?:.*\n)?[ \t]*\1", body, re.DOTALL)
            return float(whole is not None and len(fenced) == 1 and self.language.lower() in ("", fenced[0][0]))
        pattern = {"line": r"[^\n]+", "list": r"(?:[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S[^\n]*(?:\n+|\Z))+"}[self.form]
        return float(re.fullmatch(pattern, body, re.DOTALL) is not None)
