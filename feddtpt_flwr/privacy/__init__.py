"""What keeps a client's examples from showing in what it sends: ``docs/privacy.md`` says how far.

``"none"`` is the plain search, whose uploads were tuned on private text. Each of the others is a
client around the plain one (`clients.protected`):

- ``"public-tokens"`` (`public_tokens`): only tokens that are public anyway are uploaded;
- ``"synthetic"`` (`synthetic`): what is uploaded was tuned on examples that the black box wrote;
- ``"exponential"`` (`exponential`): a differentially private choice and noised counts.
"""
