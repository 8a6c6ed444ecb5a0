"""A thin trainer of speech noise suppressors, for knowledge distillation with `abckd_kernels`.

Its interface is the command abckd-dns (`cli.py`, `options.py`). To use parts of it in your own code:
`network.denoiser.Denoiser`, `data.mixtures.Mixtures`, `training.objective.SpeechLoss`, `training.loop.fit`,
`network.load.load_network`.

Its rooms, each of which imports from those behind it alone (tests/dns/test_imports.py):
    cli, early                the commands; what can be found wrong with them at once
    study, demo               what trains and compares several networks
    training, evaluation      how a network learns; how good it is
    network, data             the noise suppressor; the audio
    options, files, ...       what all of them use, without torch but for sisdr

Where the next one goes: a KD loss into abckd_kernels.losses and its table, from which `training.kd` takes it; a metric
into `evaluation.metrics.METRICS`; a source of audio into `data.sources.find_sources`; a layout of test sets into
`evaluation.recordings.Pairs`; an option into `options`; a command into `cli._COMMANDS`.
"""
