"""The methods: one LightningModule per paper, found by `class_path`."""
