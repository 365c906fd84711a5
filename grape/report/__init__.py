"""The report: one page that says whether the policies beat SFT, and shows why.

data.py reads and checks the inputs, summary.py draws the conclusions and makes metrics.json, plots.py draws,
tables.py and render.py put it on the page. Equal inputs give equal bytes: no time, no machine, no run id.
"""
