"""Out of the project again: a model as a folder of Hugging Face's format, with proof that it answers as it did here, and the
lineage it came by.

lineage.py reads dvc.lock and the receipts; folder.py writes the weights; replay.py compares the answers with those of plain.py,
which loads the folder as anybody would, in a process of its own; card.py writes the model card; gguf.py and hub.py pass the
folder on. No stage imports any of it.
"""
