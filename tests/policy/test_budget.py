import re
from pathlib import Path

import pytest

from seam.errors import SeamError
from seam.models.build import build
from seam.models.find import find_layers
from seam.models.layers import Layer
from seam.models.locks import apply_locks
from seam.policy.assign import assign
from seam.policy.budget import parse_budget, parse_budgets, read_spec
from seam.policy.cost import read_latency
from seam.settings import Model

BITS = (2, 3, 4, 5, 6)
LAYERS = [
    Layer("stem", 100, 10, True),
    Layer("blocks.0.a", 1000, 20, False, "blocks.0.a"),
    Layer("blocks.0.b", 500, 40, False, "blocks.0.a"),
    Layer("blocks.1.a", 200, 30, False),
    Layer("fc", 30, 30, True),
]


def test_locks_by_hand():
    layers = apply_locks(LAYERS, ["blocks.0.*=4/8", "blocks.0.b=2/2"], ["blocks.1.a"])
    assert [layer.fixed_bits if layer.fixed else None for layer in layers] == [
        (8, 8),
        (4, 8),
        (2, 2),
        (32, 32),
        (8, 8),
    ]
    assert [layer.counted for layer in layers] == [False, True, True, False, False]
    with pytest.raises(SeamError, match="locked or excluded"):
        parse_budget("w3a3", layers, BITS)


def test_cost_of_locked_layers_is_part_of_every_budget():
    layers = apply_locks(LAYERS, ["blocks.1.a=8/7"])
    assigned = [(2, 3), (4, 3)]
    for spec, cost in (
        ("w6a6", (1000 * 6 + 500 * 12 + 200 * 56) / 1e9),
        ("1 GBitOPs", (1000 * 6 + 500 * 12 + 200 * 56) / 1e9),
        ("1 MB", (20 * 2 + 40 * 4 + 30 * 8) / 8e6),
        ("8 bits", (20 * 2 + 40 * 4 + 30 * 8) / 90),
    ):
        assert parse_budget(spec, layers, BITS).cost(assigned) == pytest.approx(cost)
    assert parse_budget("w6a6", layers, BITS).limit == pytest.approx(1700 * 36 / 1e9)


def test_excluded_layers_and_locked_ends_are_apart():
    layers = apply_locks(LAYERS, ["stem=4/4"], ["blocks.1.a"])
    budget = parse_budget("w3a3", layers, BITS)
    assert budget.base == 0 and budget.limit == pytest.approx(1500 * 9 / 1e9)


def test_a_latency_table_needs_rows_for_allowed_pairs_only():
    table = {(layer.name, w, a): w / 4 for layer in LAYERS for w, a in [(4, 8), (8, 8)]}
    budget = parse_budget("5 ms", LAYERS, (4, 8), table, pairs=[(4, 8), (8, 8)])
    assert budget.cost([(4, 8), (8, 8), (4, 8)]) == 4 and budget.reach() == (3, 6)
    assert (budget.table[:, :, 0] == 2).all()  # what is not allowed counts as the slowest
    with pytest.raises(SeamError, match="no row for layer blocks.0.a at w=4, a=4"):
        parse_budget("5 ms", LAYERS, (4, 8), table)


def test_a_lock_takes_a_layer_out_of_its_group():
    layers = apply_locks(LAYERS, ["blocks.0.a=8/8"])
    assert [layer.group for layer in layers[1:3]] == ["blocks.0.a", "blocks.0.b"]


@pytest.mark.parametrize(
    ("lock", "exclude", "message"),
    [
        (["blocks.0.*"], [], "write a pattern"),
        (["blocks.0.*=9/8"], [], "2 to 8"),
        (["blocks.0.c=8/8"], [], "lock: .*did you mean blocks.0"),
        ([], ["block.*"], "exclude: unknown layer"),
    ],
)
def test_bad_locks_are_named(lock, exclude, message):
    with pytest.raises(SeamError, match=message):
        apply_locks(LAYERS, lock, exclude)


def test_locks_can_make_a_budget_unreachable():
    layers = apply_locks(LAYERS, ["blocks.0.a=8/8"])
    with pytest.raises(SeamError, match=r"6.68e-05 to .* of which 6\.4e-05 GBitOPs in locked layers"):
        parse_budget("w3a3", layers, BITS)


def test_several_budgets_are_met_at_once():
    budgets = parse_budgets("w4a4, 0.0000315 MB", LAYERS, BITS)
    assert [budget.kind for budget in budgets] == ["bitops", "size"]
    preferences = 0.0 * budgets[0].table
    assigned = assign(preferences, [layer.name for layer in LAYERS if not layer.fixed], BITS, budgets)
    assert all(budget.cost(assigned) <= budget.limit for budget in budgets)
    assert budgets[0].cost(assigned) >= 0.97 * budgets[0].limit
    assert [b.spec for b in parse_budgets(["w4a4", "4 bits"], LAYERS, BITS)] == ["w4a4", "4 bits"]


def test_budgets_that_contradict_are_refused_with_the_range_within_the_others(tmp_path):
    rows = [f"{n},{w},{a},{8 - w}" for n in ("blocks.0.a", "blocks.0.b", "blocks.1.a") for w in BITS for a in BITS]
    (tmp_path / "t.csv").write_text("layer,w,a,ms\n" + "\n".join(rows) + "\n")
    latency = read_latency(tmp_path / "t.csv", LAYERS)
    # Here few bits are slow: 2-bit weights everywhere take 18 ms, 6-bit ones 6 ms.
    assert parse_budget("6 ms", LAYERS, BITS, latency).reach() == (6, 18)
    with pytest.raises(SeamError, match=r"no policy meets all of: w2a2, 12 ms; within w2a2 .* starts at 18 ms"):
        parse_budgets("w2a2, 12 ms", LAYERS, BITS, latency)


def test_reach_honours_groups():
    """A tied pair where one layer is cheap at few and the other at many activation bits cannot have both."""
    latency = {("blocks.1.a", w, a): 0.0 for w in BITS for a in BITS}
    latency |= {("blocks.0.a", w, a): float(a) for w in BITS for a in BITS}
    latency |= {("blocks.0.b", w, a): float(8 - a) for w in BITS for a in BITS}
    assert parse_budget("9 ms", LAYERS, BITS, latency).reach() == (8, 8)
    with pytest.raises(SeamError, match="8 to 8 ms"):
        parse_budget("7 ms", LAYERS, BITS, latency)


def test_latency_example_is_a_budget_for_resnet18():
    layers = find_layers(build(Model(name="resnet18"), 1000, 3), (3, 224, 224))
    latency = read_latency(Path(__file__).parents[2] / "docs" / "latency_example.csv", layers)
    page = (Path(__file__).parents[2] / "docs" / "tool.md").read_text()
    shown = parse_budget(re.search(r"`--budget '(.* ms)' --latency", page)[1], layers, BITS, latency)
    assert shown.reach()[0] < shown.limit < shown.reach()[1]  # the page's own example limits
    assert "the searched layers take {:.2f} ms at 2 bits, {:.2f} at 6".format(*shown.reach()) in page
    budget = parse_budget("3 ms", layers, BITS, latency)
    assert budget.reach()[0] < 3 < budget.reach()[1]
    names = [layer.name for layer in layers if not layer.fixed]
    assert 0.97 * 3 <= budget.cost(assign(0.0 * budget.table, names, BITS, [budget])) <= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer,w,ms\n", "columns must be layer,w,a,ms"),
        ("# c\nlayer,w,a,ms\nblocks.0.c,2,2,1\n", "line 3: unknown layer 'blocks.0.c'; did you mean"),
        ("layer,w,a,ms\nblocks.0.a,2,2,fast\n", "line 2: not layer,w,a,ms"),
        ("layer,w,a,ms\nblocks.0.a,2,2,-1\n", "line 2: ms must be"),
        ("layer,w,a,ms\nblocks.0.a,2,2,1\nblocks.0.a,2,2,1\n", "line 3: a second row for blocks.0.a at w2a2"),
        ("", "columns must be layer,w,a,ms; found $"),
        ("layer,w,a,ms\nblocks.0.a,2,2,nan\n", "line 2: ms must be 0 or more, at most 1e.09, found nan"),
        ("layer,w,a,ms\nblocks.0.a,2,2,1e308\n", "line 2: ms must be 0 or more, at most 1e.09, found 1e308"),
        ("layer,w,a,ms\nblocks.0.a,2\n", "line 2: not layer,w,a,ms"),
        (f"layer,w,a,ms\nblocks.0.a,2,2,{'9' * 5000}\n", "line 2: ms must be"),
        (f"layer,w,a,ms\nblocks.0.a,{'9' * 5000},2,1\n", "line 2: not layer,w,a,ms"),
        (f"layer,w,a,ms\n{'x' * 100_000},2,2,1\n", "line 2: unknown layer"),
        (f"layer,w,a,ms\n{'x' * 200_000},2,2,1\n", "line 2: not CSV .field larger"),
        (f"{'x' * 200_000}\n", "line 1: not CSV .field larger"),
        (f"{'x' * 100_000}\n", "columns must be"),
        ('layer,w,a,ms\n"blocks.0.a,2,2,1\nblocks.0.b,2,2,1\n', "line 3: unknown layer"),
        ('layer,w,a,ms\nblocks.0.a,2,2,1\n\n"blocks\n.0.a",2,2,1\n', "line 5: a second row"),
        (b"layer,w,a,ms\nblocks.0.a,2,2,1\xff\n", "not UTF-8 text .* at byte 29"),
        ("layer,w,a,ms\n".encode("utf-16"), "not UTF-8 text"),
    ],
)
def test_bad_latency_tables_are_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SeamError, match=message) as error:
        read_latency(tmp_path / "t.csv", LAYERS)
    assert "t.csv" in str(error.value) and len(str(error.value)) < 600


def test_a_latency_table_is_a_file(tmp_path):
    with pytest.raises(SeamError, match="Is a directory"):
        read_latency(tmp_path, LAYERS)
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbflayer,w,a,ms\r\nblocks.0.a,2,2,1\r\n")  # as spreadsheets write it
    assert read_latency(tmp_path / "t.csv", LAYERS) == {("blocks.0.a", 2, 2): 1.0}


@pytest.mark.parametrize(
    ("spec", "read"),
    [("w3a4", ("bitops", 12)), ("1.2 GBitOPs", ("bitops", 1.2)), (".8MB", ("size", 0.8)), ("3 bits", ("bits", 3))],
)
def test_a_limit_is_read_without_a_network(spec, read):
    assert read_spec(spec) == read
    assert read_spec("4 ms") == ("latency", 4) and pytest.raises(SeamError, read_spec, "4 ms", latency=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("w0a3", "write w3a3"),
        ("w10a2", "write w3a3"),
        ("0 MB", "more than 0"),
        ("", "write w3a3"),
        ("9" * 400 + " MB", "finite number"),
        ("x" * 9999, "write w3a3"),
    ],
)
def test_a_limit_that_cannot_be_read(spec, message):
    with pytest.raises(SeamError, match=message):
        read_spec(spec)


def test_a_missing_row_and_a_missing_table_are_named():
    with pytest.raises(SeamError, match="needs a latency table"):
        parse_budget("12.5 ms", LAYERS, BITS)
    with pytest.raises(SeamError, match="no row for layer blocks.0.a at w=2, a=3"):
        parse_budget("12.5 ms", LAYERS, BITS, {("blocks.0.a", 2, 2): 1.0})
