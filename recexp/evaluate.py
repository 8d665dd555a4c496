"""``python -m recexp.evaluate``: rank a finished run's users under another protocol."""

from recexp.runs.evaluate import main

if __name__ == "__main__":
    main()
