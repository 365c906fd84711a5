"""The report: one page that says whether the policies beat SFT, and shows why.

data.py reads and checks the inputs, conclusions.py makes metrics.json of them, alarms.py looks for rewards that are gamed,
findings.py for rubric items that people should look at again, plots.py and evolution.py draw with what drawing.py has, tables.py
and render.py put it on the page. Equal inputs give equal bytes: no time, no machine, no run id.
"""
