"""The flags of a program that distributes tasks."""

from __future__ import annotations

import dataclasses

from easi3r_jax.apps import cli
from easi3r_jax.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """How tasks are distributed.

    Attributes:
      address: "local" starts a cluster on this machine, "auto" finds one that runs here, HOST:PORT names one.
      workers: their number; 0: as many as fit.
      devices_per_worker: GPUs, chips of a TPU, or without accelerators processor cores; 0: see `ClusterFlags`.
      max_minutes: a task that takes longer loses its worker; 0: no limit.
      attempts: how often a task is begun before it is given up.
    """

    address: str = "local"
    workers: int = 0
    devices_per_worker: int = 0
    max_minutes: float = 0.0
    attempts: int = 3


class ClusterFlags:
    """The flags of a program that distributes tasks.

    Args:
      flags: the program's.
    """

    def __init__(self, flags: cli.Flags):
        group = flags.group("Cluster (needs the extra [cluster])")
        self._address = group.string(
            "cluster",
            "",
            "Distribute the work over workers of a Ray cluster: local starts one on this machine, auto finds the one "
            "that this machine belongs to, HOST:PORT names one. Without it, everything runs in this process.",
        )
        self._workers = group.integer("workers", 0, "Number of workers (0: as many as the cluster holds).")
        self._devices = group.integer(
            "devices_per_worker",
            0,
            "GPUs of a worker, or chips of a TPU, or processor cores where there is neither (0: one GPU, all chips of "
            "a host, an equal share of the cores).",
        )
        self._minutes = group.number(
            "max_minutes", 0.0, "End a clip's attempt after so many minutes (0: no limit).", at_least=0.0
        )
        self._attempts = group.integer(
            "attempts", 3, "Number of times a clip is begun if its worker dies or takes too long.", at_least=1
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the flags: they do not affect results."""
        holders = (self._address, self._workers, self._devices, self._minutes, self._attempts)
        return tuple(holder.name for holder in holders)

    @property
    def distributed(self) -> bool:
        """Whether a cluster was asked for."""
        return bool(self._address.value)

    @property
    def options(self) -> ClusterOptions:
        """The flags' values."""
        return ClusterOptions(
            self._address.value,
            self._workers.value,
            self._devices.value,
            self._minutes.value,
            self._attempts.value,
        )

    def check(self) -> None:
        """Refuses flags that have no effect.

        Raises:
          ConfigError: a flag of clusters without `--cluster`.
        """
        if not self.distributed:
            for holder in (self._workers, self._devices, self._minutes, self._attempts):
                if holder.present:
                    raise ConfigError(f"--{holder.name} applies to a cluster: add --cluster=local, or omit it.")
