"""Models for others: a folder with a README, a model hub, a MONAI bundle."""
