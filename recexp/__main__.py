"""``python -m recexp``: train and evaluate a recommender."""

from recexp.cli.main import main

if __name__ == "__main__":
    main()
