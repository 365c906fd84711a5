"""Two rounds of sampling and scoring before hours of training: what they say of the run that is about to begin.

alike.py says which runs of rl one rehearsal stands for, and by which key it is known again; `grape.stages.rehearsal` draws and
scores with the very parts of the rl stage; findings.py judges what it saw, times.py says how long the runs will take; record.py
keeps and tells it. `grape.commands.rehearse` is the command and the process, `grape.pipeline.rehearsal` lets runs wait for it.
"""
