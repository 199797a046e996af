"""Command line as a module: `python -m textgen_env` is `textgen`."""

from textgen_experiments.program import main

if __name__ == "__main__":
    main()
