"""PyMC models as ordered sites, with their log density."""
