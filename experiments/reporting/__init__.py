"""The report: read runs, draw charts, look at single tokens, put all of it on one page."""
