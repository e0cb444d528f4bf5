"""Counted operations against XLA's own count, and the benchmark program's measurements."""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from easi3r_jax.apps import flops
from easi3r_jax.apps.benchmark import main, page, tables
from easi3r_jax.apps.benchmark.suite import SUITE, shown
from easi3r_jax.apps.benchmark.timing import Limits, Row, total
from easi3r_jax.core.errors import ConfigError, InputError
from easi3r_jax.models import abstract_model, flow_network
from easi3r_jax.models.config import DUSt3RConfig, FlowConfig
from tests.networks import small_network

GRID = (6, 8)
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "benchmarks.md"


def config(**changes) -> DUSt3RConfig:
    """One layer each: XLA counts the body of a loop once, however often it runs."""
    sizes = {"enc_dim": 128, "enc_heads": 4, "dec_dim": 96, "dec_depth": 1, "dec_heads": 4}
    return small_network(**{"image_size": (96, 128), "patch_size": 16, **sizes, **changes})


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def decode(model, a, b, *, gram=False):
    decoded = model.decode(a, b, GRID, gram=gram)
    return decoded.tokens_i, decoded.tokens_j, decoded.stats


def features(config: DUSt3RConfig) -> jax.Array:
    return jnp.zeros((1, GRID[0] * GRID[1], config.enc_dim))


def assert_nearly_all(counted: float, by_xla: float):
    """Ours counts matrix products, XLA norms and activations too, but no product with a convolution's padding."""
    assert 0.95 * counted <= by_xla <= 1.15 * counted


def test_encoder_flops():
    c = config()
    rgb = jnp.zeros((1, *c.image_size, 3), jnp.uint8)
    assert_nearly_all(flops.encoder_flops(c, GRID), xla_flops(lambda m, x: m.encode(x), abstract_model(c), rgb))


def test_decoder_flops():
    c = config()
    counted = flops.decoder_flops(c, GRID) + flops.statistics_flops(c, GRID)
    assert_nearly_all(counted, xla_flops(decode, abstract_model(c), features(c), features(c)))


def test_gram_statistics_flops():
    c = config()
    arguments = (abstract_model(c), features(c), features(c))
    by_xla = xla_flops(functools.partial(decode, gram=True), *arguments) - xla_flops(decode, *arguments)
    assert_nearly_all(flops.statistics_flops(c, GRID, gram=True) - flops.statistics_flops(c, GRID), by_xla)


@pytest.mark.parametrize("changes", [{}, {"head": "dpt", "dec_depth": 4}], ids=["linear", "dpt"])
def test_heads_flops(changes):
    c = config(**changes)
    model, x = abstract_model(c), features(c)
    with_heads = xla_flops(lambda m, a, b: m.predict(a, b, m.decode(a, b, GRID), GRID), model, x, x)
    assert_nearly_all(flops.heads_flops(c, GRID), with_heads - xla_flops(decode, model, x, x))


@pytest.mark.parametrize("network", [pytest.param("sea-raft", marks=pytest.mark.slow), "raft-small"])
def test_traced_flops(network):
    """Of one iteration against XLA's count; of three as many times that of one as loops say."""
    model, image = jax.eval_shape(lambda: flow_network(FlowConfig(network))), jnp.zeros((1, 64, 96, 3))

    def flow(iterations):
        return lambda network, a, b: network(a, b, iterations)[0]

    one, two, three = (flops.traced_flops(flow(n), model, image, image) for n in (1, 2, 3))
    # XLA counts no product with padding, of which small images have much.
    assert 0.9 * one <= xla_flops(flow(1), model, image, image) <= 1.1 * one
    assert three - two == pytest.approx(two - one) and two > one


def test_traced_flops_of_loops_and_branches():
    square = jnp.zeros((8, 8))

    def function(a):
        a = jax.lax.scan(lambda carry, _: (carry @ a, None), a, None, length=5)[0]
        return jax.lax.cond(a[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, a)

    assert flops.traced_flops(function, square) == (5 + 2) * 2 * 8**3


def test_counted_bytes_are_at_least_the_observations():
    counts = {"num_frames": 5, "num_edges": 20, "num_pixels": 1000, "iterations": 3}
    points = flops.alignment_bytes(**counts, with_flow=False)
    assert points > 3 * 20 * 1000 * 2 * 16
    assert flops.alignment_bytes(**counts, with_flow=True) - points == 3 * 20 * 1000 * (8 + 1 + 4 + 8)
    assert points - flops.alignment_bytes(**counts, with_flow=False, number=2) == 3 * 20 * 1000 * 2 * 8


@pytest.mark.slow
def test_the_program_measures_the_properties_of_the_design(command, tmp_path):
    """Eight frames make two batches of pairs."""
    file = tmp_path / "benchmark.json"
    done = command(
        "benchmark", "--frames=8", "--iterations=20", "--repeats=1", "--stages=network,alignment", f"--json={file}"
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(file.read_text())
    assert measured["reconstruction"]["encodings_per_frame"] == 1
    assert measured["reconstruction"]["compilations_between_pair_batches"] == 0
    cost = measured["statistics_cost"]
    assert 0 < cost["attention"]["counted_flops_share"] < 0.03 < cost["gram"]["counted_flops_share"] < 0.2
    for name in (
        "encode",
        "first pass",
        "k-means",
        "masks",
        "second pass",
        "encoding and two passes",
        "first pass, Gram statistics",
        "alignment",
        "alignment, flow",
        "clean-up of confidence",
    ):
        stage = measured["stages"][name]
        assert stage["seconds"] > 0 and stage["peak_memory_bytes"]["host"] > 1e8
        assert stage["first_seconds"] >= stage["compile_seconds"] > 0
        assert stage["limits"]["product"] > 1e9 and stage["limits"]["copy"] > 1e8
        assert name in done.stdout
    assert measured["stages"]["alignment, flow"]["bytes"] > measured["stages"]["alignment"]["bytes"] > 0
    assert "peak memory" in done.stdout


@pytest.mark.slow
def test_flow_without_weights_is_measured(command, tmp_path):
    file = tmp_path / "flow.json"
    done = command("benchmark", "--frames=3", "--stages=flow", "--flow=dis", "--repeats=1", f"--json={file}")
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["stages"]["flow, dis"]
    assert found["items"] == 4 and found["seconds"] > 0  # swinstride-5-noncyclic pairs neighbours


@pytest.mark.slow
def test_flow_is_measured_alone(command, tmp_path):
    file = tmp_path / "benchmark.json"
    size = ("--frames=3", "--height=64", "--width=64", "--graph=complete", "--repeats=1")
    done = command("benchmark", *size, "--stages=flow", "--flow=raft-small", f"--json={file}")
    assert done.returncode == 0, done.stderr
    stages = json.loads(file.read_text())["stages"]
    assert list(stages) == ["flow, raft-small"]
    assert stages["flow, raft-small"]["items"] == 6 and stages["flow, raft-small"]["flops"] > 1e9


def test_unknown_stages_are_refused(here):
    done = here("benchmark", "--stages=network,masks")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --stages=network,masks: it must be some of network, flow, alignment")


def test_a_size_that_does_not_divide_is_refused(here):
    done = here("benchmark", "--height=70", "--width=96")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: 96x70 does not divide into patches of 8."]


def made_up(name: str, **changes) -> Row:
    """A row whose numbers differ by its name."""
    number = float(1 + len(name) % 7)
    values = {
        "items": 4,
        "seconds": number,
        "first_seconds": 2 * number,
        "compile_seconds": number,
        "programs": 5,
        "cached": 2,
        "flops": 6e9 * number,
        "bytes": None,
        "peak_memory_bytes": {"host": int(1e9 * number)},
        "limits": Limits(12e9, 24e9),
    }
    return Row(**values | changes)


def test_the_page_has_a_block_for_every_measurement_and_its_text_no_measured_number():
    text = PAGE.read_text(encoding="utf-8")
    found = {m.name: {"stages": {m.name: made_up(m.name)}, "command": shown(m.flags)} for m in SUITE}
    contents = page.blocks(found, "A machine.")
    once = page.filled(text, contents)
    assert page.filled(once, contents) == once
    for measurement in SUITE:
        assert f"| {measurement.name} | 4 | 3 | " in once
    by_hand = page.filled(text, dict.fromkeys(contents, ""))
    assert not re.findall(r"[\d.]+ (?:s|ms|min|[MG]B|GB/s|GFLOP|GFLOP/s|%|times)\b", by_hand)
    assert not re.findall(r"^\|.*\d", by_hand, flags=re.MULTILINE)
    for line in once.splitlines():
        assert len(line) <= 120


def test_pages_with_other_blocks_are_refused(tmp_path):
    other = tmp_path / "page.md"
    other.write_text("<!-- measured: machine -->\n<!-- end -->\n<!-- measured: taste -->\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"blocks are not those that are measured: .*checkpoint.*taste"):
        page.check_page(str(other), draft=True, quick=True)
    with pytest.raises(InputError, match="Cannot read the page"):
        page.check_page(str(tmp_path / "absent.md"), draft=True, quick=True)
    with pytest.raises(ConfigError, match="--quick does not measure what the page says"):
        page.check_page(str(PAGE), draft=False, quick=True)


def test_a_page_is_of_one_commit(tmp_path, monkeypatch):
    changed = tmp_path / "page.md"
    changed.write_text(PAGE.read_text(encoding="utf-8"))
    commits = iter(["commit a", "commit a", "commit b", "commit b+"])

    def code_version():
        return next(commits)

    code_version.cache_clear = lambda: None
    monkeypatch.setattr(page, "code_version", code_version)
    page.check_page(str(changed), draft=False, quick=False)
    with pytest.raises(ConfigError, match="changed while commit a was measured"):
        page.write_page(str(changed), {}, command="make bench", draft=False)
    with pytest.raises(ConfigError, match="changed since the commit"):
        page.check_page(str(changed), draft=False, quick=False)
    assert changed.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_a_draft_says_so_and_is_written(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE.read_text(encoding="utf-8"))
    found = {m.name: {"stages": {m.name: made_up(m.name)}, "command": shown(m.flags)} for m in SUITE}
    page.write_page(str(path), found, command="make bench", draft=True)
    text = path.read_text(encoding="utf-8")
    assert "**A draft: " in text and "`make bench`" in text and re.search(r"\d{4}-\d\d-\d\d; easi3r_jax ", text)
    assert [p.name for p in tmp_path.iterdir()] == ["page.md"]


def test_quick_flags_replace_those_of_the_same_name():
    (released,) = (m for m in SUITE if m.name == "released network")
    quick = released.command_line(quick=True)
    assert "--preset=embedded" in quick and "--preset=512-dpt" not in quick
    assert released.command_line(quick=False) == released.flags


@pytest.mark.parametrize("quick", [True, False])
def test_the_flags_of_every_measurement_are_valid(quick):
    for measurement in SUITE:
        assert main.FLAGS.execute(lambda: None, ["", *measurement.command_line(quick=quick)]) == 0, measurement


def test_rates_are_fractions_of_the_limits_of_the_same_time():
    cells = dict(zip(tables.HEADER, tables.cells("x", made_up("x", seconds=2.0, bytes=6e9)), strict=True))
    assert cells["of product"] == "50 %"  # 12 GFLOP in 2 s, of 12 GFLOP/s
    assert cells["of copy"] == "12 %" and cells["programs"] == "3" and cells["ms/item"] == "500"
    both = total([made_up("x", seconds=2.0), made_up("x", seconds=6.0, limits=Limits(20e9, 24e9), flops=None)])
    assert both.seconds == 8 and both.limits.product == pytest.approx(18e9) and both.programs == 10


def test_quick_goes_with_the_whole(here):
    done = here("benchmark", "--quick")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --quick and --draft go with --all or --page")
