"""Datasets: what is known about them, getting them, reading them, and choosing a part of them."""
