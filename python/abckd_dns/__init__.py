"""A thin trainer of speech noise suppressors, for knowledge distillation with `abckd_kernels`.

Its interface is the command abckd-dns (`cli.py`). To use parts of it in your own code: `model.Denoiser`,
`data.Mixtures`, `objective.SpeechLoss`, `train.fit`, `networks.load_network`.
"""
