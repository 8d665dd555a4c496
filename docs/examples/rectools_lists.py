"""Train a RecTools model on an exported split and write its lists for ``recexp.evaluate``.

    python -m recexp.data.export dataset=ml_1m protocol=full_unseen --format csv --out split
    python rectools_lists.py split test ease lists.csv

Runs in an environment that has ``rectools==0.19.0``; recexp itself is not needed there.
"""

import sys
from pathlib import Path

import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset, Interactions
from rectools.models import EASEModel, PopularModel

MODELS = {
    "popular": lambda regularization: PopularModel(),
    "ease": lambda regularization: EASEModel(regularization=regularization),
}
LENGTH = 100  # of a list; metrics are known up to this cut-off


def interactions(path):
    """The events of an exported file in the columns of RecTools, each pair once."""
    events = pd.read_csv(path)
    columns = {"user": Columns.User, "item": Columns.Item, "timestamp": Columns.Datetime}
    events = events.rename(columns=columns)[list(columns.values())]
    events[Columns.Weight] = 1.0
    return events.drop_duplicates([Columns.User, Columns.Item], keep="last")


def main(folder, split, name, out, regularization=500.0):
    """Fit on the training events; recommend by the history before each target of the split."""
    folder = Path(folder)
    trained_on = Dataset.construct(interactions(folder / "train.csv"))
    model = MODELS[name](float(regularization))
    model.fit(trained_on)
    known = interactions(folder / f"history_{split}.csv")
    known = known[known[Columns.Item].isin(trained_on.item_id_map.external_ids)]
    ids = (trained_on.user_id_map, trained_on.item_id_map)
    histories = Dataset(*ids, Interactions.from_raw(known, *ids))
    users = pd.read_csv(folder / f"{split}.csv")["user"]
    lists = model.recommend(users, histories, k=LENGTH, filter_viewed=True)
    lists = lists.rename(
        columns={
            Columns.User: "user",
            Columns.Item: "item",
            Columns.Rank: "rank",
            Columns.Score: "score",
        }
    )
    lists[["user", "item", "rank", "score"]].to_csv(out, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
