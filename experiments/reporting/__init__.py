"""Report of several runs as one page: tables, charts, and texts token by token."""
