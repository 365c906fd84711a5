"""`grape run`: pre-flight, plan, the stages by an engine, what became of them.

orchestrate.py puts these in their order; plan.py draws what would run, schedule.py and execute.py run it, mend.py tidies up after
a kill, closing.py words the end.
"""

from grape.pipeline.hooks import Hooks
from grape.pipeline.orchestrate import Request, Result, look, run
from grape.pipeline.plan import Plan
from grape.pipeline.schedule import Engine, Threads, Work
from grape.pipeline.screen import Screen

__all__ = ["Engine", "Hooks", "Plan", "Request", "Result", "Screen", "Threads", "Work", "look", "run"]
