"""A thin trainer of speech noise suppressors, for knowledge distillation with `abckd_kernels`.

Its interface is the command abckd-dns (`cli.py`). To use parts of it in your own code: `model.Denoiser`,
`data.Mixtures`, `objective.SpeechLoss`, `train.fit`, `networks.load_network`.

Where the next one goes: a KD loss into abckd_kernels.losses and its table, from which `kd` takes it; a metric into
`metrics.METRICS`; a source of audio into `sources.find_sources`; a layout of test sets into `evaluate.Pairs`; a command
into `cli._COMMANDS`.
"""
