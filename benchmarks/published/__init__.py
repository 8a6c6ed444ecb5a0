"""The losses as published, in eager PyTorch: one file per family, functions and modules named like the losses."""
