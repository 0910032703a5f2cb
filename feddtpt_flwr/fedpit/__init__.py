"""FedPIT (arXiv 2403.06131): federated instruction tuning that keeps private text out of uploads.

A Flower app of its own, described by ``apps/fedpit.toml``; it needs the extra ``[fedpit]``.
"""
