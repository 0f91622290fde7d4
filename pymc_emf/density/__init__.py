"""Density estimation: layers and embedded models, trained by maximum likelihood."""
