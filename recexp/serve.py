"""``python -m recexp.serve``: a finished run's model behind HTTP."""

from recexp.runs.serve import main

if __name__ == "__main__":
    main()
