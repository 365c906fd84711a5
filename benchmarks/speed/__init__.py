"""grape beside TRL on the same work, timed in turns: `make bench`, or python -m benchmarks.speed (docs/performance.md).

work.py      what both sides are given: prompts, rows and pairs as token ids, made once and read by both
gate.py      holds a side between its steps, and times them
ours.py      a process of grape's own loop; theirs.py: of TRL's trainers, and of transformers' generation
turns.py     starts the processes, lets them step in turns, finds each side's best settings, checks that the work was the same
machine.py   what this machine could do at best
growth.py    how grape's step grows with the group, the prompt and the completion
tables.py    what came of it as Markdown
"""
