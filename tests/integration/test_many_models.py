"""Forty models in the memory of ten."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.many_models import Scenario, expected_labels, run, sample_inputs


def test_the_samples_tell_labels_apart() -> None:
    inputs = sample_inputs()
    assert len(inputs) == 20
    assert len(set(expected_labels(inputs))) >= 5


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [2])
def test_forty_models_in_the_memory_of_ten(tmp_path: Path, workers: int) -> None:
    scenario = Scenario(workers=workers, probes=10)
    report = run(scenario, tmp_path)
    print(report.text())
    assert not report.wrong
    assert len(report.mixed_s) == scenario.requests
    assert report.samples > 20
    assert report.most_used_bytes <= report.budget_bytes
    assert report.most_private_bytes <= report.idle_bytes + 1.5 * report.budget_bytes
    assert not report.loaded_twice
    assert report.load_failures == 0
    assert report.most_resident <= scenario.fits
    assert report.loads > scenario.models
    assert report.loads - report.evictions == report.resident
