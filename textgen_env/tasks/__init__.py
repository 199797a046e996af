"""Tasks: where pairs of source and reference text come from.

`task.py` says what a task is; each other file makes one: `copy.py` and `recovery.py` (synthetic),
`verses.py` (translation), `descriptions.py` (summarization) and `text_files.py` (the user's own
text). `noise.py` makes another of one, `packages.py` finds the packages that carry text. Nothing is
imported here: a function named like its file would hide that file.
"""
