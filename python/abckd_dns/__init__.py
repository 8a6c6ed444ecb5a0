"""A thin trainer of speech noise suppressors, for knowledge distillation with `abckd_kernels`.

Its interface is the command abckd-dns (`cli.py`, `options.py`), and, to denoise arrays, `abckd_dns.enhance(array, rate,
network)`. To use parts of it in your own code: `network.denoiser.Denoiser`, `data.mixtures.Mixtures`,
`training.objective.SpeechLoss`, `training.loop.fit`, `networks.load_network`.

Its rooms, each of which imports from those behind it alone (tests/dns/test_imports.py):
    cli, early                the commands; what can be found wrong with them at once
    study, demo               what trains and compares several networks
    training, deployment      how a network learns; what a device runs
    evaluation                how good it is
    rivals, networks          public denoisers of others; networks for your own code
    network, data             the noise suppressor; the audio
    options, files, ...       what all of them use, without torch but for sisdr

Where the next one goes: a KD loss into abckd_kernels.losses and its table, from which `training.kd` takes it; a metric
into `evaluation.metrics.METRICS`; a source of audio into `data.sources.find_sources`; a format into `data.audio` and
`data.writing`; an augmentation into `data.augment`; a network into `network.load.FAMILIES`; a layout of pairs into
`data.pairs`; a system to compare with into `evaluation.systems`, or, if it is a
public denoiser, into `rivals.denoisers.RIVALS`; an option into `options`; a command into `cli._COMMANDS`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation.enhance import enhance_array as enhance

__all__ = ["enhance"]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the commands start without torch."""
    if name == "enhance":
        from .evaluation.enhance import enhance_array

        return enhance_array
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
