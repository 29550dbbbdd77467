"""A lean decoder, and how long it takes to write a text."""
