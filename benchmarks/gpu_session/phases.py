"""The table of phases. A phase is a module with `run(setting: Setting, report: Report) -> None`."""

from __future__ import annotations

from dataclasses import dataclass

_PACKAGE = "benchmarks.gpu_session"


@dataclass(frozen=True)
class Phase:
    """A part of the session."""

    name: str
    title: str
    limit: float  # seconds on a GPU, and on a CPU with the small sizes: then the phase is ended
    needs: float  # seconds below which it is not started
    module: str  # which has run(setting, report)
    may_be_cut: bool = False  # it measures as long as there is time: its end by the limit is no failure

    @property
    def is_required(self) -> bool:
        """Whether a session on a GPU must have run it."""
        return not self.may_be_cut


def _phase(name: str, title: str, limit: float, needs: float, may_be_cut: bool = False) -> Phase:
    return Phase(name, title, limit, needs, f"{_PACKAGE}.{name}", may_be_cut)


PHASES = (
    _phase("versions", "versions, device, packages", 40, 5),
    _phase("attention", "attention with padded masks against float32", 60, 10),
    _phase("denoiser", "denoiser, compiled, against eager; rate; no step waits", 160, 20),
    _phase("autoencoder", "autoencoder on cached states; a validation", 100, 15),
    _phase("sampling", "texts in few and in many steps, greedy and beam, twice; noise", 150, 20),
    _phase("programs", "language model, autoencoder, denoiser, SIGTERM and resume, evaluation", 160, 40),
    _phase("accumulation", "micro-batches against the large batch", 70, 15),
    _phase("waiting", "no step of any kind of training waits for the device", 60, 15),
    _phase("throughput", "benchmarks/throughput.py, as far as time allows", 300, 15, may_be_cut=True),
    _phase("tests", "tests/pipelines/test_on_a_gpu.py, as far as time allows", 600, 60, may_be_cut=True),
)
