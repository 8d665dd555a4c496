"""``python -m recexp.recommend``: lists of the best items of a finished run's model."""

from recexp.runs.recommend import main

if __name__ == "__main__":
    main()
