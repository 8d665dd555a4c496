"""Well-formed data of extreme shape, from raw file to store."""

import numpy as np
import pytest

from recexp.data.cache import prepare
from recexp.data.dataset import Dataset
from recexp.data.split import Split
from recexp.data.store import Store
from recexp.errors import RecexpError


def opened(folder, reader, files, behaviors=("interaction",), **options):
    raw = folder / "raw"
    raw.mkdir()
    for name, text in files.items():
        (raw / name).write_text(text)
    source = {"_target_": f"recexp.data.readers.{reader}.read", "_partial_": True, **options}
    return Store.open(
        prepare(Dataset("x", str(raw), source, behaviors, behaviors), Split(), folder / "cache")
    )


def pairs(rows):
    return "".join(f"{user} {item}\n" for user, item in rows)


def test_a_history_of_100_000_events(tmp_path):
    items = [n * 7919 % 1000 for n in range(100_000)]
    store = opened(
        tmp_path,
        "sequence_file",
        {"s.txt": pairs([(1, item) for item in items] + [(2, 5), (2, 6)])},
        file="s.txt",
    )
    assert (
        store.past.item[:100_000].numpy() == np.array(items) + 1
    ).all() and store.schema.n_users == 2
    assert store.test.item.tolist() == [items[-1] + 1, 7]


def test_one_line_of_100_000_items(tmp_path):
    line = "1 " + " ".join(str(n % 500) for n in range(100_000))
    store = opened(
        tmp_path,
        "attribute_sequence",
        {"Beauty.txt": line, "Beauty_item2attributes.json": '{"3": [1]}'},
    )
    assert len(store.past.item) == 100_000 and store.schema.n_items == 500


def test_one_user_and_one_item(tmp_path):
    store = opened(tmp_path, "sequence_file", {"s.txt": pairs([(7, 7)] * 3)}, file="s.txt")
    assert (store.schema.n_users, store.schema.n_items, store.past.item.tolist()) == (
        1,
        1,
        [1, 1, 1],
    )


def test_a_single_event_is_no_data_set(tmp_path):
    with pytest.raises(RecexpError, match="No user has a test target"):
        opened(tmp_path, "sequence_file", {"s.txt": pairs([(7, 7)])}, file="s.txt")


def test_every_user_with_all_items(tmp_path):
    store = opened(
        tmp_path,
        "sequence_file",
        {"s.txt": pairs([(u, i) for u in range(40) for i in range(60)])},
        file="s.txt",
    )
    assert (
        store.all_pairs.count.tolist() == [1] * 2400
        and store.item_count.tolist() == [0] + [40] * 60
    )


def shop(tree, properties="1,10,categoryid,1"):
    head = "timestamp,itemid,property,value\n"
    return {
        "events.csv": "timestamp,visitorid,event,itemid,transactionid\n"
        "1,1,view,10,\n2,1,view,11,\n3,2,view,10,\n",
        "item_properties_part1.csv": head + properties + "\n",
        "item_properties_part2.csv": head + "1,99,categoryid,1\n",
        "category_tree.csv": "categoryid,parentid\n"
        + "".join(f"{value},{parent}\n" for value, parent in tree),
    }


@pytest.mark.parametrize(
    "tree",
    [
        [(1, 1)],
        [(1, 2), (2, 1)],
        [(1, 2), (2, 3), (3, 4), (4, 2)],
        [(n, n + 1) for n in range(1, 80)],
    ],
)
def test_a_tree_without_roots_is_an_error(tmp_path, tree):
    with pytest.raises(
        RecexpError,
        match="tree of item feature category has a cycle, or more than 64 levels: value",
    ):
        opened(tmp_path, "retailrocket", shop(tree), ("view", "addtocart", "transaction"))


def test_a_cycle_above_no_item_and_items_without_category(tmp_path):
    """Item 11 has no category. Values 8 and 9 are each other's parents, and no item has them. Where
    a value has two parents, both count.
    """
    store = opened(
        tmp_path,
        "retailrocket",
        shop([(1, 2), (1, 3), (2, ""), (8, 9), (9, 8)]),
        ("view", "addtocart", "transaction"),
    )
    feature = store.schema.item_features["category"]
    assert feature.id_VM.tolist() == [[0, 0, 0], [1, 2, 3], [0, 0, 0]]
    assert feature.weight_VM.sum(1).tolist() == pytest.approx([0, 1, 0])


def test_no_item_has_a_category(tmp_path):
    with pytest.raises(RecexpError, match=r"none of its 2 item ids .* has 98, 99; the events have"):
        opened(
            tmp_path,
            "retailrocket",
            shop([(1, 2)], "1,98,categoryid,1"),
            ("view", "addtocart", "transaction"),
        )
