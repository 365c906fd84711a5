"""Judges that wait for a server are asked while the policy still writes: about each answer as soon as it is finished.

It changes no score. What a server's judge said is kept by content (`openai.ServerCritic`), so that scoring, which asks everything
in order when the round is written, finds most of it there. What failed is not kept, and is asked once more then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from queue import SimpleQueue
from types import TracebackType

from grape.reward.critics.openai import ServerCritic
from grape.reward.critics.panel import PanelCritic
from grape.reward.verdict import Critic, Question
from grape.types import Response

Ask = Callable[[Sequence[Response]], tuple[list[str], list[Question]]]  # the names and questions of a critic's items


def waiting(critic: Critic) -> list[ServerCritic]:
    """The judges of a critic that wait for a server and keep what it said."""
    judges: Collection[Critic] = critic.judges.values() if isinstance(critic, PanelCritic) else [critic]
    return [judge for judge in judges if isinstance(judge, ServerCritic) and judge.cache]


class Ahead:
    """To be used with `with`, once: call it with each response as it is finished.

    At the end of the block it waits for the answers that are under way, and asks nothing more. A judge without an answer ends it:
    scoring says what is wrong.
    """

    def __init__(self, judges: Sequence[ServerCritic], ask: Ask) -> None:
        self.judges, self.ask = judges, ask
        self._queue: SimpleQueue[Response | None] = SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="judges ahead", daemon=True)

    def __call__(self, response: Response) -> None:
        self._queue.put(response)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._queue.put(None)
        if kind is None:  # an interruption does not wait for a server
            self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            found = [self._queue.get()]  # and all that has been finished meanwhile
            while not self._queue.empty():
                found.append(self._queue.get())
            responses = [one for one in found if one is not None]
            if self._over.is_set() or not responses or not self._asked(responses):
                return

    def _asked(self, responses: Sequence[Response]) -> bool:
        """Whether every judge answered every question."""
        try:
            names, questions = self.ask(responses)
            return not names or all(bool(judge.judge(names, questions).valid.all()) for judge in self.judges)
        except Exception:  # scoring meets it again, where it can be told
            return False
