"""One YAML file per device; data only. Field by field: README.md in this folder."""
