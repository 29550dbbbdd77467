"""What each weight is worth: Fisher information, forecast loss, formats by layer."""
