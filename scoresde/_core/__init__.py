"""Foundations that every package uses: argument checks, shapes, random numbers, serialization."""
