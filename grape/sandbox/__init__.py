"""Model-written code, run where it can do no harm and knows no answer.

What the child gets is a program and calls, what it gives back is JSON; expected values and verdicts exist in grape's process
alone. Read in this order: `run` and `box` (the parent), `launch`, `kernel`, `work` (the child), `canaries` and `tiers`
(what holds here), `protocol` (reading what comes back). What is run and what its answers are worth, `grape.reward.verifiers`
knows.
"""
