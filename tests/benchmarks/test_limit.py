"""The limit: rates of products, and how a round compares with them."""

from __future__ import annotations

import json
import time

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import limit


def test_a_round_is_compared_with_the_fastest_product(capsys):
    flags = ["--workload", "logistic", "--clients", "2", "--rounds", "2", "--seconds", "0.01", "--sizes", "64", "128"]
    report = limit.main(limit.parse_flags([*flags, "--megabytes", "1", "--devices", "2"]))
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == report
    assert "128 x 128 x 128" in printed
    assert report["flops_per_example"] == 194_432
    assert [square["shape"] for square in report["squares"]] == [[64, 64, 64], [128, 128, 128]]
    assert sorted(shape["shape"] for shape in report["shapes"]) == [[20, 784, 62], [62, 20, 784]]
    assert sum(shape["share"] for shape in report["shapes"]) == pytest.approx(1)
    assert len(report["peaks_in_turns"]) == report["rounds"]["rounds"] == 2
    rates = [found["flops_per_second"] for found in report["squares"] + report["shapes"]]
    assert report["peak_flops_per_second"] == max(rates + report["peaks_in_turns"])
    assert report["ceiling_examples_per_second"] == pytest.approx(report["peak_flops_per_second"] / 194_432, rel=1e-4)
    fraction = report["best_examples_per_second"] / report["ceiling_examples_per_second"]
    assert report["fraction_of_bests"] == pytest.approx(fraction, rel=1e-4)
    assert 0 < report["fraction_of_bests"] < 1
    assert 0 < report["fraction_of_medians"]
    assert report["shapes_ceiling_examples_per_second"] <= report["ceiling_examples_per_second"] * (1 + 1e-5)
    assert 1e6 < report["bytes_per_second"] < 1e14
    assert (report["num_devices"], report["clients"]) == (2, 2)


def test_all_workloads_are_measured_one_by_one(monkeypatch, capsys):
    asked = []

    def run_apart(module, *flags):
        asked.append((module, *flags))
        figures = dict.fromkeys(["flops_per_example", "peak_flops_per_second", "ceiling_examples_per_second"], 2e9)
        rates = dict.fromkeys(["examples_per_second", "best_examples_per_second"], 5.0)
        fractions = {f"fraction_of_{name}": 0.25 for name in ("bests", "medians", "shapes")}
        rounds = {"first_round_seconds": 7.5}
        return {"workload": flags[1], "lanes": 3, **figures, **rates, **fractions, "rounds": rounds}

    monkeypatch.setattr(limit, "run_apart", run_apart)
    report = limit.main(limit.parse_flags(["--workload", "all", "--rounds", "4", "--sizes", "8", "9"]))
    assert [call[:3] for call in asked] == [("limit", "--workload", name) for name in limit.WORKLOADS]
    parsed = limit.parse_flags([str(flag) for flag in asked[0][1:]])
    assert (parsed.rounds, parsed.sizes, parsed.lanes, parsed.megabytes) == (4, [8, 9], "auto", 256)
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == report
    assert [found["workload"] for found in report["workloads"]] == list(limit.WORKLOADS)
    row = next(line for line in printed if line.startswith("mobilenet"))
    assert row.split() == ["mobilenet", "3", "2", "2,000", "2,000,000,000", "5", "5", "0.25", "0.25", "0.25", "7.5"]


def test_shapes_share_the_time_of_a_step():
    shapes = [{"share": 0.5, "flops_per_second": 100.0}, {"share": 0.25, "flops_per_second": 25.0}]
    assert limit.rate_of_shapes(shapes) == pytest.approx(0.75 / (0.005 + 0.01))


def test_small_products_are_left_out():
    counts, flops = limit.workload_products(limit.WORKLOADS["emnist_cnn"]())
    assert flops == 71_605_248
    shares = [product.flops * times / (20 * flops) for product, times in counts.items()]
    assert len(shares) == 11
    assert sum(share >= limit.SMALL for share in shares) == 6
    assert sum(share for share in shares if share >= limit.SMALL) > 0.98


def test_the_least_time_is_that_of_one_call():
    calls = []

    def call():
        calls.append(1)
        time.sleep(0.002)
        return jnp.zeros(())

    least = limit.least_seconds(call, 0.1)
    assert 0.002 <= least < 0.02
    assert len(calls) > 5


def test_all_devices_work_at_once():
    mesh = limit.client_mesh(4)
    x = limit.on_every_device(mesh, (3, 5))
    assert x.shape == (4, 3, 5)
    assert {shard.data.shape for shard in x.addressable_shards} == {(1, 3, 5)}
    assert len({shard.device for shard in x.addressable_shards}) == 4
    np.testing.assert_array_equal(x, 1)
