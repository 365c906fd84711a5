"""Which answers become a pair, and which pairs the reward model is measured on."""

from __future__ import annotations

from itertools import combinations

import pytest

from grape.artifacts import Preference, Turn
from grape.stages.preferences import pairs
from grape.stages.reward import resampled, split
from grape.types import Prompt, Response

PROMPT = Prompt("p", "letters", ({"role": "user", "content": "Shout cat!"},), "CAT")


def answered(*scored: tuple[str, float], finished: bool = True) -> list[tuple[Response, float]]:
    return [(Response(PROMPT, i, (i,), text, finished), score) for i, (text, score) in enumerate(scored)]


def compared(rows: list[Preference]) -> list[tuple[str, str]]:
    return [(row.chosen[0].content or "", row.rejected[0].content or "") for row in rows]


ANSWERS = answered(("CAT", 1.0), ("cat", 0.2), ("Cat", 0.25), ("CAT", 1.0), ("CA", 0.6))


def test_best_worst_is_one_pair_of_a_prompt() -> None:
    rows = pairs(ANSWERS, 0.05, "rubric", 0, "best_worst")
    assert compared(rows) == [("CAT", "cat")] and rows[0].id == "p"


@pytest.mark.parametrize("margin, ties", [(0.0, set()), (0.1, {("Cat", "cat")})])
def test_all_compares_every_two_answers_once_and_leaves_out_near_ties(margin: float, ties: set[tuple[str, str]]) -> None:
    rows = pairs(ANSWERS, margin, "rubric", 0, "all")
    ranked = ["CAT", "CA", "Cat", "cat"]
    assert sorted(compared(rows)) == sorted(set(combinations(ranked, 2)) - ties)
    assert len({row.id for row in rows}) == len(rows)
    assert all((row.chosen_score or 0) > (row.rejected_score or 0) for row in rows)


def test_an_answer_that_was_cut_is_in_no_pair() -> None:
    cut = answered(("C", 0.0), finished=False)
    assert ("CAT", "C") not in compared(pairs([*ANSWERS, *cut], 0.0, "rubric", 0, "all"))


def labelled(prompt: str, better: str, worse: str) -> Preference:
    said = [[Turn(role="assistant", content=text)] for text in (better, worse)]
    asked = [Turn(role="user", content=prompt)]
    return Preference(id=f"{prompt}{better}{worse}", category="c", prompt=asked, chosen=said[0], rejected=said[1])


def test_no_prompt_of_a_held_out_pair_is_trained_on() -> None:
    """Pairs of one prompt share answers: one of them held out would be known by heart from the others."""
    rows = [labelled(f"q{i}", *two) for i in range(10) for two in combinations("abc", 2)]
    trained, kept = split(rows, 0.3, 0)
    assert sorted(trained + kept) == list(range(30)) and len(kept) == 9
    assert not {rows[i].prompt[0].content for i in trained} & {rows[i].prompt[0].content for i in kept}


def test_with_one_pair_a_prompt_the_split_is_by_pair() -> None:
    trained, kept = split([labelled(f"q{i}", "a", "b") for i in range(10)], 0.25, 0)
    assert len(kept) == 2 and sorted(trained + kept) == list(range(10)) and trained != sorted(trained)


def test_the_first_member_learns_from_all_and_the_others_from_whole_prompts_drawn_again() -> None:
    rows = [labelled(f"q{i}", *two) for i in range(10) for two in combinations("abc", 2)]
    trained, _ = split(rows, 0.3, 0)
    assert resampled(rows, trained, 0, 0) == trained
    one, other = (resampled(rows, trained, 0, member) for member in (1, 2))
    assert len(one) == len(trained) and one != other and set(one) < set(trained)
    counts = [sum(rows[i].prompt[0].content == f"q{q}" for i in one) for q in range(10)]
    assert all(count % 3 == 0 for count in counts) and max(counts) > 3, "a prompt's pairs come together, some prompts twice"
