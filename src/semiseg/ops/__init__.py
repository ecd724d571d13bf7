"""Kernels: arrays in, arrays out; no files, no logging, no torch."""
