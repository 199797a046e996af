"""Tasks: where pairs of source and reference text come from.

`task.py` says what a task is; each other file makes one: `copy.py` (synthetic), `verses.py`
(translation) and `text_files.py` (the user's own text). `noise.py` makes another of one. Nothing is
imported here: a function named like its file would hide that file.
"""
