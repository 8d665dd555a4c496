"""``python -m recexp.evaluate``: test the model of a finished run under another protocol."""

from recexp.runs.evaluate import main

if __name__ == "__main__":
    main()
