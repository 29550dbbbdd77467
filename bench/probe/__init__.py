"""The device's own roofs, and the file that holds them."""
