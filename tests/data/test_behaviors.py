"""Behaviors by name: codes of the files, a subset of them, and what is counted."""

import pytest

from recexp.data.cache import prepare, read_meta
from recexp.data.store import Store
from recexp.errors import RecexpError
from tests.support.events import BEHAVIORS, P3, dataset, random_events, write

CODES = {"view": "1", "cart": "2", "buy": "3"}
MAPPING = {1: "view", 2: "cart", 3: "buy"}


def coded(events):
    return [event._replace(behavior=CODES[event.behavior]) for event in events]


def arrays(folder):
    return read_meta(folder)["arrays"]


def test_texts_of_the_files_may_have_other_names(tmp_path):
    """Digits in the files, names everywhere else: the arrays are those of files with names."""
    events = random_events(0)
    named = dataset(write(tmp_path / "named", events))
    digits = dataset(write(tmp_path / "digits", coded(events)), behavior_names=MAPPING)
    assert digits.behaviors == list(BEHAVIORS)
    folder = prepare(digits, P3, tmp_path / "cache")
    assert arrays(folder) == arrays(prepare(named, P3, tmp_path / "cache"))
    assert read_meta(folder)["behaviors"] == list(BEHAVIORS)
    # Another name for a code is another data set.
    other = dataset(tmp_path / "digits", behavior_names={2: "view", 1: "cart", 3: "buy"})
    assert prepare(other, P3, tmp_path / "cache") != folder


def test_texts_may_share_a_name(tmp_path):
    events = [event._replace(behavior=n % 4) for n, event in enumerate(random_events(0))]
    mapping = {0: "look", 1: "look", 2: "buy", 3: "buy"}
    shared = dataset(write(tmp_path / "raw", events), behavior_names=mapping, explicit=["buy"])
    store = Store.open(prepare(shared, P3, tmp_path / "cache"))
    assert store.schema.behaviors == ("look", "buy")
    meta = read_meta(store.folder)
    assert meta["events"] == {
        "look": sum(event.behavior < 2 for event in events),
        "buy": sum(event.behavior >= 2 for event in events),
    }


def test_a_text_without_a_name_is_a_fault_even_if_it_is_the_name_of_another(tmp_path):
    events = coded(random_events(0))
    write(tmp_path / "raw", [*events, events[0]._replace(behavior="buy")])
    strict = dataset(tmp_path / "raw", behavior_names=MAPPING)
    with pytest.raises(RecexpError, match=r"unknown behavior 'buy' in event 251.*\['1', '2', '3'"):
        prepare(strict, P3, tmp_path / "cache")
    lenient = dataset(tmp_path / "raw", behavior_names=MAPPING, on_bad_rows="drop")
    assert sum(read_meta(prepare(lenient, P3, tmp_path / "cache"))["events"].values()) == 250


@pytest.mark.parametrize("on_bad_rows", ["error", "drop"])
@pytest.mark.parametrize("mapping", [None, MAPPING])
def test_a_subset_is_as_if_the_others_had_never_been_in_the_files(tmp_path, mapping, on_bad_rows):
    """Whatever is done about faults. Behaviors that are not listed are left out, too."""
    events = random_events(0)
    written = events if mapping is None else coded(events)
    noise = [written[0]._replace(behavior="scroll")]
    some = dataset(
        write(tmp_path / "all", noise + written),
        behavior_names=mapping,
        keep_behaviors=["buy", "cart"],
        on_bad_rows=on_bad_rows,
    )
    assert list(some.behaviors) == ["cart", "buy"]  # weak to strong, as behaviors lists them
    folder = prepare(some, P3, tmp_path / "cache")
    only = write(tmp_path / "some", [e for e in events if e.behavior != "view"])
    expected = prepare(dataset(only, behaviors=BEHAVIORS[1:]), P3, tmp_path / "cache")
    assert arrays(folder) == arrays(expected)
    n_views = sum(event.behavior == "view" for event in events)
    texts = ["scroll", "view"] if mapping is None else ["1", "scroll"]
    line = f"{n_views + 1} events dropped: behavior among {texts}"
    assert line in read_meta(folder)["report"]


def test_all_behaviors_by_name_is_another_setting_with_the_same_arrays(tmp_path):
    shop = dataset(write(tmp_path / "raw", random_events(0)))
    folder = prepare(shop, P3, tmp_path / "cache")
    kept = prepare(dataset(tmp_path / "raw", keep_behaviors=BEHAVIORS), P3, tmp_path / "cache")
    assert arrays(kept) == arrays(folder) and kept != folder


@pytest.mark.parametrize(
    "options, words",
    [
        ({"keep_behaviors": ["buys"]}, r"keep_behaviors names \['buys'\], which is not among"),
        ({"keep_behaviors": ["view"]}, r"leaves none of dataset.explicit \['cart', 'buy'\]"),
        ({"keep_behaviors": []}, "leaves none of dataset.explicit"),
        (
            {"value_behaviors": {"buy": 1, "cart": 0}, "keep_behaviors": ["buy"]},
            "leave a behavior out of dataset.value_behaviors instead",
        ),
        ({"behavior_names": {1: "buy"}}, r"explicit names \['cart'\]"),
    ],
)
def test_wrong_names_are_refused(tmp_path, options, words):
    with pytest.raises(RecexpError, match=words):
        dataset(tmp_path, **options)
    with pytest.raises(RecexpError, match="both name the behaviors"):
        dataset(tmp_path, behavior_names=MAPPING, value_behaviors={"buy": 1})


def test_no_event_of_the_kept_behaviors_is_an_error(tmp_path):
    events = [event._replace(behavior="view") for event in random_events(0)]
    given = dataset(write(tmp_path / "raw", events), keep_behaviors=["buy"])
    with pytest.raises(RecexpError, match=r"no event has one of the behaviors \['buy'\]"):
        prepare(given, P3, tmp_path / "cache")
