"""Where text becomes tokens and tokens become text: the one place that knows a tokenizer's chat template, its turn ends and its
thinking.

    messages --template--> text --tokenizer--> prompt ids | response ids      what is trained is what sampling would have written
    response ids --> raw text --> the answer that verifiers and judges read   without thinking, turn end and template text

Content is only ever text: a control token spelled out in it (`<|im_end|>`, `</s>`) is encoded letter by letter, so that no text
can end its turn or begin another's (transformers' `mark_control_tokens`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from grape.errors import GrapeError
from grape.models.protocols import LanguageModel, Tokenizer
from grape.models.template import (
    CLOSE,
    MARK,
    TEMPLATES,
    THINKING,
    Template,
    at_a_fixed_date,
    mark,
    outside,
    template_of,
    texts,
    thinking_tags,
)

Messages = Sequence[Mapping[str, Any]]


class Row(NamedTuple):
    """Token ids of a text and what continues it. `given`: per response token, whether it was given, not written by the model (turns
    of others between its own): read, not learned from. Empty: none was."""

    prompt: list[int]
    response: list[int]
    given: tuple[bool, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.response)


class Encoded(NamedTuple):
    """A row, and what happened on the way: `spelled`: a control token in the text was written out as text; `apart`: the tokenizer
    would join the end of a prompt with the answer, so they were encoded apart, as sampling has them."""

    row: Row
    spelled: bool = False
    apart: bool = False


class Chat:
    """A tokenizer with its chat template, ready to encode and decode.

    Args:
        tokenizer: a fast tokenizer of transformers, with a chat template.
        template: what the template is told.
        model: its generation config may name more tokens that end a response.

    Attributes:
        stops: every token that ends a response: the tokenizer's EOS, those of the generation config, and the one the template puts
            behind an assistant's content.
        pad: id for padding; masks never read it.
        thinking: the tags around reasoning, or None.
        dated: the template asked for today's date, and is told `template.date`.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | None = None, model: LanguageModel | None = None) -> None:
        self.tokenizer, self.settings = tokenizer, template or Template()
        if self.settings.text is not None:
            tokenizer.chat_template = self.settings.text
        self.template, self.dated = at_a_fixed_date(template_of(tokenizer), self.settings.date)
        self.pad = int(tokenizer.pad_token_id)
        self.thinking = thinking_tags(self.settings.thinking, self.template, tokenizer)
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        tags = set(self.thinking or ())
        # What only the template may write. The assistant writes its own thinking tags and tool calls itself, others do not.
        self._others = frozenset(t for t, special in added.items() if special or (t in self.template and not t.isspace()))
        self._assistants = frozenset(t for t, special in added.items() if special and t not in tags)
        self._shapes: set[tuple[object, ...]] = set()
        self._prompts = lru_cache(maxsize=8192)(self._prompt)
        self.stops, self._tail = self._ends(model)
        self._assistants |= set(tokenizer.convert_ids_to_tokens(sorted(self.stops)))
        self._opened = self._opens_thinking()

    # ---- messages to text

    def text(self, messages: Messages, generation: bool, where: str = "") -> str:
        """The template's text of a conversation, control tokens within contents marked; `generation`: up to where the model speaks.

        Raises:
            GrapeError: the template refuses these turns, or knows nothing of something they say.
        """
        shape = tuple((m["role"], tuple(sorted(m)), bool(m.get("content"))) for m in messages)
        if shape not in self._shapes:
            self._refuse_unread(messages, where)
            self._shapes.add(shape)
        return self._render([self._marked(m) for m in messages], generation, where)

    def _render(self, messages: Sequence[Mapping[str, Any]], generation: bool, where: str) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=generation, **self.settings.arguments
            )
        except Exception as error:  # a template is a program of somebody else and raises what it likes
            roles = ", ".join(str(m["role"]) for m in messages)
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise GrapeError(
                f"the chat template refuses a conversation of the turns {roles}: {said}",
                where=where or None,
                mend="change the row's turns, or give another template (model.template.text)",
            ) from error
        assert isinstance(text, str)
        return text

    def _marked(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with every control token in its texts marked, so that it is encoded as text."""
        texts = {k: v for k, v in message.items() if k != "role"}
        return {"role": message["role"], **mark(texts, self._assistants if message["role"] == "assistant" else self._others)}

    def _refuse_unread(self, messages: Messages, where: str) -> None:
        """
        Raises:
            GrapeError: the template leaves out a turn, or a key of one: what is said there would silently be no part of the text.
        """
        probes = [f"Xq{i}Qx" for i in range(len(messages))]
        asked = [{**m, "content": p} if m.get("content") else dict(m) for m, p in zip(messages, probes, strict=True)]
        text = self._render(asked, False, where)
        for i, (message, probe) in enumerate(zip(messages, probes, strict=True)):
            if message.get("content") and probe not in text:
                raise GrapeError(
                    f"the chat template leaves out message {i}, a turn of the {message['role']}",
                    where=where or None,
                    mend="remove such turns, or give a template that knows them (model.template.text)",
                )
        for key in sorted({k for m in messages for k in m} - {"role", "content"}):
            if self._render([{k: v for k, v in m.items() if k != key} for m in asked], False, where) == text:
                raise GrapeError(
                    f"the chat template does not read {key!r} of a message",
                    where=where or None,
                    mend="remove the key, or give a template that knows it (model.template.text)",
                )

    # ---- text to tokens

    def tokens(self, text: str) -> list[int]:
        """Ids of a template's text; nothing is added."""
        if MARK not in text and CLOSE not in text:  # what transformers then does; of short texts most of its time goes around it
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()  # a tokenizer.json may ask for it, and so may whoever used this tokenizer last
            backend.no_padding()
            backend.encode_special_tokens = False
            return list(backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"])

    def plain(self, text: str) -> tuple[list[int], bool]:
        """Ids of a text that is no conversation, and whether a control token in it was spelled out."""
        marked = mark(text, self._others)
        return self.tokens(marked), marked != text

    def prompt(self, messages: Messages, where: str = "") -> list[int]:
        """Ids of the conversation up to where the model speaks."""
        return list(self._prompts(json.dumps([dict(m) for m in messages]), where))

    def _prompt(self, messages: str, where: str) -> tuple[int, ...]:
        return tuple(self.tokens(self.text(json.loads(messages), True, where)))

    def conversation(self, messages: Messages, where: str = "", learned: Sequence[int] | None = None) -> Encoded:
        """A conversation as prompt and response: what the model is to learn to write, and what it reads between.

        Args:
            where: the row, for messages.
            learned: places of the assistant's turns to learn, in order; None: the last turn.

        Raises:
            GrapeError: the template refuses the turns; what it writes for a conversation does not begin with what the model is
                sampled from; it puts no end behind an earlier turn that is to be learned.
        """
        places = [len(messages) - 1] if learned is None else list(learned)
        whole = self.text(messages, False, where)
        heads = [self.text(messages[:i], True, where) for i in places]
        for i, head in zip(places, heads, strict=True):
            if not whole.startswith(head):
                raise GrapeError(
                    "the chat template is not prefix-stable: the conversation with its answer does not begin with the prompt the "
                    "model is sampled from" + ("" if i == places[-1] else f" (message {i}; later turns change it)"),
                    where=where or None,
                    mend="use a chat template whose generation prompt is a prefix of the answer's text"
                    + ("" if i == places[-1] else ", or learn the last turn alone (sft.turns: last)"),
                )
        cuts = [len(head) for head in heads]
        for i, start, end in zip(places, cuts, [*cuts[1:], len(whole)], strict=True):
            self._refuse_unsaid(messages[i], i, whole[start:end], where)
        ids, starts, apart = self._split(whole, cuts)
        if self._tail and whole.endswith(self._tail) and not self.stops & set(ids[starts[-1] :]):
            # The template leaves the end to the tokenizer; its own text behind the content is not the model's to write.
            ids, starts, apart = self._split(whole.removesuffix(self._tail), cuts)
        ids, ends = self._turn_ends(ids, starts, where)
        first = starts[0]
        given = [True] * (len(ids) - first)
        for start, end in zip(starts, ends, strict=True):
            given[start - first : end - first] = [False] * (end - start)
        row = Row(ids[:first], ids[first:], tuple(given) if any(given) else ())
        return Encoded(row, MARK in whole, apart)

    def _refuse_unsaid(self, message: Mapping[str, Any], place: int, said: str, where: str) -> None:
        """
        Raises:
            GrapeError: a turn that is to be learned says something that does not stand in the text the template makes of it.
        """
        marked = self._marked(message)
        content = str(marked.get("content") or "")
        tags = self.thinking or THINKING[0]
        parts = [*re.split("|".join(map(re.escape, tags)), content), str(marked.get("reasoning_content") or "")]
        parts += texts([call.get("function", call) for call in marked.get("tool_calls") or ()])
        for part in (part.strip() for part in parts):
            if part not in said and json.dumps(part)[1:-1] not in said and json.dumps(part, ensure_ascii=False)[1:-1] not in said:
                raise GrapeError(
                    f"the chat template leaves out part of message {place}, which is to be learned: {part[:40]!r}",
                    where=where or None,
                    mend="learn the last turn alone (sft.turns: last), take that part out, or give a template that says all "
                    "(model.template.text)",
                )

    def _split(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[int], bool]:
        """Ids of the text, and where each cut falls. The ids of the whole decide; where a token would lie across a cut, what
        stands before and behind it is encoded apart, because sampling begins there."""
        done: list[int] = []
        begun, apart = 0, False
        rest = self.tokens(text)
        places = []
        for cut in cuts:
            before = self.tokens(text[begun:cut])
            if rest[: len(before)] != before:
                done, begun, apart = [*done, *before], cut, True
                rest, before = self.tokens(text[cut:]), []
            places.append(len(done) + len(before))
        return [*done, *rest], places, apart

    def _turn_ends(self, ids: list[int], starts: Sequence[int], where: str) -> tuple[list[int], list[int]]:
        """The ids up to the end of the last turn, and where each turn ends, its stop token included."""
        ends = []
        for start, following in zip(starts, [*starts[1:], len(ids)], strict=True):
            stop = next((i + 1 for i in range(start, following) if ids[i] in self.stops), None)
            if stop is None and start != starts[-1]:
                raise GrapeError(
                    "the chat template ends the assistant's earlier turns with no token that stops sampling, so they cannot be "
                    "learned",
                    where=where or None,
                    mend="learn the last turn alone (sft.turns: last), or give a template that ends turns (model.template.text)",
                )
            ends.append(stop)
        if ends[-1] is None:
            ids, ends[-1] = [*ids, self.tokenizer.eos_token_id], len(ids) + 1
        return ids[: ends[-1]], [int(e) for e in ends]  # type: ignore[arg-type]

    # ---- tokens to text

    def read(self, ids: Sequence[int]) -> tuple[str, str]:
        """(answer, raw) of response ids. Raw is all of it, with its special tokens, without the one that ended it. The answer is
        what verifiers and judges read: no thinking, no special tokens. A response that never came to an end of its thinking has
        answered nothing."""
        own = list(ids[:-1] if ids and ids[-1] in self.stops else ids)
        raw = self._decoded(own, False)
        if self.thinking is None:
            return self._decoded(own, True), raw
        begin, end = self.thinking
        opening, closing = self.tokens(begin), self.tokens(end)
        if len(closing) == 1 and len(opening) == 1:
            kept = outside(own, opening[0], closing[0], self._opened)
            return self._decoded(kept, True).lstrip(), raw
        answer = self._decoded(own, True)
        pieces = [piece for piece in re.split(f"({re.escape(begin)}|{re.escape(end)})", answer) if piece]
        return "".join(outside(pieces, begin, end, self._opened)).lstrip(), raw

    def _decoded(self, ids: list[int], skip: bool) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))

    # ---- what the template is like

    def _ends(self, model: LanguageModel | None) -> tuple[frozenset[int], str]:
        """The ids that end a response, and the template's text behind an answer's content."""
        probe = "Zq8Qz"
        text = self._render([{"role": "user", "content": "?"}, {"role": "assistant", "content": probe}], False, TEMPLATES)
        tail = text.rpartition(probe)[2] if probe in text else ""  # one that leaves answers out can still ask a judge
        named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ids = [*(named if isinstance(named, (list, tuple)) else [named]), self.tokenizer.eos_token_id]
        ids += [i for i in self.tokens(tail) if self._is_control(i)][:1]
        return frozenset(int(i) for i in ids if i is not None), tail

    def _is_control(self, id: int) -> bool:
        token = self.tokenizer.added_tokens_decoder.get(id)
        return token is not None and token.content in self._others - set(self.thinking or ())

    def _opens_thinking(self) -> bool:
        """Whether the prompt itself opens the thinking, so that the response begins within it."""
        if self.thinking is None:
            return False
        text = self._render([{"role": "user", "content": "?"}], True, TEMPLATES)
        return text.rfind(self.thinking[0]) > text.rfind(self.thinking[1])
