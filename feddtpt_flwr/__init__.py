"""Federated, discrete, transferable prompt tuning for black-box language models.

The Flower application of FedDTPT (arXiv 2411.00985). Importing the package is cheap: every backend
imports its heavy library only when it is used.
"""

__version__ = "0.1.0"
