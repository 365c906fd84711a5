"""`grape tune`: the same number of trials for every algorithm, each a set of its knobs, on the validation prompts, at equal budget.

spaces.py: which knobs are tried, and within what; workspace.py: a trial's copy of the project; trial.py: one trial, trained and
evaluated; study.py: which set is tried next (Optuna); search.py: all of it in order. What was found stands in `inputs/tuned.yaml`
(`grape/tuned.py`).
"""
