"""Adapters of ChatGym's environments to other libraries."""
