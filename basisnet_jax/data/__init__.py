"""Datasets and input pipelines. Nothing is imported here: importing `basisnet_jax` must not load TensorFlow."""
