"""Who judges: the reward source that training sees, and the gold judge that only evaluation sees."""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from grape.errors import GrapeError
from grape.reward.critics.settings import load_critic
from grape.reward.learned import LearnedReward
from grape.reward.rubric import load_rubrics
from grape.reward.sandbox.tiers import tier
from grape.reward.source import RewardSource, RubricReward
from grape.stages import Stage
from grape.types import Prompt

# Verifiers that run what a model has written; how well they are shut in goes into the receipt.
SANDBOXED = frozenset({"python_tests", "math", "reasoning_gym"})

Gold = Callable[[Prompt, str], float]


def load_module(path: Path) -> ModuleType:
    """A Python file as a module, by its path: worlds and gold judges are files of the project, not parts of grape."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise GrapeError(
            f"no such Python file: {path}",
            where="params.yaml, prepare.source",
            mend="give the path of an existing file",
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is somebody's program
        line = error.lineno if isinstance(error, SyntaxError) else None
        raise GrapeError(
            f"it cannot be loaded: {type(error).__name__}: {error}",
            where=f"{path}:{line}" if line else str(path),
            mend="mend that file",
        ) from error
    return module


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a call of somebody else's Python code that takes longer; no limit outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError(f"it took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def gold_judge(stage: Stage) -> Gold | None:
    """`gold` of the world's file, or of gold.py beside the user's own data; None where there is none."""
    source = stage.root / stage.params.prepare.source
    path = source if source.suffix == ".py" else source / "gold.py"
    return getattr(load_module(path), "gold", None) if path.is_file() else None


def reward_source(
    stage: Stage, prompts: Sequence[Prompt], file: str | None = None, which: str | None = None
) -> RewardSource:
    """The source `which` names (rubric, reward_model; None: what rl.reward says), checked against the prompts, lines of `file`."""
    how = (stage.params.model.dtype, stage.params.model.micro_batch_tokens)
    template = stage.params.model.template
    if (which or stage.params.rl.reward) == "reward_model":
        return LearnedReward(stage.root / "models/reward", *how, template)
    rubrics = load_rubrics(stage.root / "rubrics")
    kinds = {item.kind for rubric in rubrics.values() for item in rubric.items}
    critic = load_critic(stage.root / "models/critic", stage.root, *how, template) if "critic" in kinds else None
    learned = LearnedReward(stage.root / "models/reward", *how, template) if "reward_model" in kinds else None
    source = RubricReward(rubrics, critic, learned)
    source.check(prompts, file)
    if any(item.verifier in SANDBOXED for rubric in rubrics.values() for item in rubric.items):
        stage.run.tag({f"grape.sandbox.{name}": str(value) for name, value in tier().receipt().items()})
    return source
