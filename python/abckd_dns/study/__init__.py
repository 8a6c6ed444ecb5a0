"""The study: distillation losses compared on unseen speakers and noises, over seeds, with and without labels.

config (the TOML file) -> runs (which trainings there are) -> runner (does them, as jobs) -> results (CSV) -> report.
"""
