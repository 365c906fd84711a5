"""Evaluation: the record that `evaluate` writes and `report` reads, and the statistics in it.

record.py is what stands in reports/evaluate, statistics.py the intervals and what is said of rubric items, sides.py puts two
policies beside each other, in numbers and in their answers for people to read. harness.py measures standard benchmarks, kept.py
keeps what was made once.
"""
