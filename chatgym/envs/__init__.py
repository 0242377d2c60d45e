"""Gymnasium environments: a single conversation, and B of them side by side."""
