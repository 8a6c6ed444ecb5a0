"""Which attention-based compression distils best? README.md here is the page, `python -m studies.abc` the command.

package (what comes from the trainer, with the public denoisers of abckd_dns.rivals, one of them a strong teacher)
cache (what a teacher says of every training mixture, made once) -> segments (batches of it)
rivals, candidates (losses) -> rig (one run) -> queue (many runs, a CSV row each)
diagnose (what layers and losses tell), confirm (the data that no choice may see)
"""
