"""Sequences, bags and synthetic scenes as samples, and the losses and metrics over them."""
