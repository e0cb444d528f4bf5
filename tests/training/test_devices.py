"""Cores of a CPU as devices."""

import os

import jax
import pytest

from easi3r_jax.core import sharding


@pytest.mark.parametrize(("cores", "batch_size", "devices"), [(1, 16, 1), (2, 16, 2), (6, 16, 4), (8, 9, 3), (4, 7, 1)])
def test_cores_that_divide_the_batch_become_devices(monkeypatch, cores, batch_size, devices):
    asked = {}
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    sharding.split_cpu(batch_size)
    assert asked == {"jax_num_cpu_devices": devices}


def test_a_requested_number_of_devices_is_kept(monkeypatch):
    asked = {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    sharding.split_cpu(16)
    assert not asked
